"""Progress on the screen: a live table on a terminal, plain lines elsewhere, JSON lines for tools."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from rayprep.model.events import Event, Phase
from rayprep.model.stages import StageName
from rayprep.report.screen import Grid, Screen, write_json, write_line


class View(Protocol):
    """Where a run's events are shown. A context manager around the run."""

    def show(self, event: Event) -> None: ...

    def refresh(self) -> None:
        """Called several times a second while nothing is said."""
        ...

    def __enter__(self) -> "View": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def choose_view(*, json_lines: bool, stream: TextIO | None = None) -> View:
    """`--json` wins; otherwise what the stream is."""
    stream = stream or sys.stdout
    if json_lines:
        return LineView(stream, json_lines=True)
    return LiveView(stream) if stream.isatty() else LineView(stream, json_lines=False)


class LineView:
    """One line an event."""

    def __init__(self, stream: TextIO, *, json_lines: bool) -> None:
        self._stream, self._json = stream, json_lines

    def show(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # whoever read it has gone, which is no reason to stop the work
            if self._json:
                write_json(event.json_line, self._stream)
            else:
                write_line(event.human_line, self._stream)

    def refresh(self) -> None:
        """Lines stay as they are."""

    def __enter__(self) -> "LineView":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""


class _Row:
    """One stage's line in the live table."""

    def __init__(self) -> None:
        self.state, self.hint, self.count = "waiting", "", ""
        self.started: float | None = None
        self.took: float | None = None

    def take(self, event: Event) -> None:
        if event.phase is Phase.START:
            self.state, self.started = "running", time.monotonic()
        elif event.phase is Phase.PROGRESS:
            self.hint = event.hint or ""
            self.count = f"{event.done}/{event.total}" if event.total else ""
        elif event.phase is Phase.END:
            self.state, self.took = event.status or "", event.duration_s
            self.hint = event.remark or str(event.error_type or event.reason or "")

    @property
    def elapsed(self) -> str:
        seconds = self.took if self.took is not None else self.started and time.monotonic() - self.started
        return f"{seconds:.1f} s" if seconds else ""


_STYLE = {"ok": "green", "noop": "green", "error": "bold red", "running": "bold cyan", "skipped": "dim"}


class LiveView:
    """Stages and the proof, elapsed time and the current hint, redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        self._rows = {name: _Row() for name in (*(stage.value for stage in StageName), "verify")}
        self._above = ""
        self._screen = Screen(stream)
        self._live = self._screen.live(self._table)

    def show(self, event: Event) -> None:
        row = self._rows.get(event.name)
        if row is not None:
            row.take(event)
        elif event.phase is Phase.WARNING:
            self._screen.line(event.human_line, "yellow")
        self._above = event.human_line if event.phase is Phase.WAIT_LOCK else ""

    def refresh(self) -> None:
        self._live.refresh()

    def _table(self) -> Grid:
        grid = Grid(title=self._above)
        for heading in ("stage", "state", "elapsed", "done", "now"):
            grid.column(heading, no_wrap=heading != "now")
        for name, row in self._rows.items():
            grid.row(name, (row.state, _STYLE.get(row.state, "")), row.elapsed, row.count, row.hint)
        return grid

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
