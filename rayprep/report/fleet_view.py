"""A fleet's progress on the screen: hosts in a live table on a terminal, plain or JSON lines elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rayprep.model.events import Event, Phase
from rayprep.model.fleet.result import FleetHost, FleetResult
from rayprep.model.fleet.rollout import WORST_FIRST, HostPhase
from rayprep.model.fleet.status import FleetStatus, HostNow
from rayprep.report.host_view import LineView, View
from rayprep.report.screen import Grid, Screen

PROGRESS_EVERY_S = 10.0
STYLE = {
    **{"verified": "green", "ready": "green", "running": "bold cyan", "waiting": "dim"},
    **{"failed": "bold red", "lost": "bold red"},
}


class FleetView(View, Protocol):
    """Where a fleet's events are shown. A context manager around the run."""

    def update(self, result: FleetResult) -> None:
        """The state of all hosts, several times a second."""
        ...

    def __enter__(self) -> "FleetView": ...


def choose_fleet_view(*, json_lines: bool, stream: TextIO | None = None) -> FleetView:
    """`--json` wins; otherwise what the stream is."""
    stream = stream or sys.stdout
    return LiveFleetView(stream) if stream.isatty() and not json_lines else FleetLineView(stream, json_lines=json_lines)


class FleetLineView(LineView):
    """One line an event; each names its host. Of what goes on, no more than one line a host every ten seconds."""

    def __init__(self, stream: TextIO, *, json_lines: bool) -> None:
        super().__init__(stream, json_lines=json_lines)
        self._all = json_lines
        self._said: dict[str, float] = {}

    def show(self, event: Event) -> None:
        if event.phase is Phase.PROGRESS and event.host and not self._all:
            now = time.monotonic()
            if now - self._said.setdefault(event.host, now) < PROGRESS_EVERY_S:
                return
            self._said[event.host] = now
        super().show(event)

    def update(self, result: FleetResult) -> None:
        """The events have said it."""

    def __enter__(self) -> "FleetLineView":
        return self


class LiveFleetView:
    """A row for each host, redrawn in place; warnings above it."""

    def __init__(self, stream: TextIO) -> None:
        self._last: dict[str, HostNow] = {}
        self._status: FleetStatus | None = None
        self._screen = Screen(stream)
        self._live = self._screen.live(self._draw)

    def show(self, event: Event) -> None:
        if event.host:
            self._last[event.host] = HostNow(age_s=0, last=event)
        ended_by_error = event.phase is Phase.END and event.name == "ensure" and event.message
        if event.phase in (Phase.WARNING, Phase.WAIT_LOCK) or ended_by_error:
            self._screen.line(event.human_line, "bold red" if ended_by_error else "yellow")

    def update(self, result: FleetResult) -> None:
        self._status = FleetStatus(run_id=result.run.run_id, taken_at=result.run.started_at, result=result)
        self._status = self._status.model_copy(update={"now": dict(self._last)})

    def refresh(self) -> None:
        self._live.refresh()

    def _draw(self) -> Grid:
        # What does not fit on the screen would take most of a core to lay out, four times a second.
        return fleet_table(self._status, max(1, self._screen.height - 3))

    def __enter__(self) -> "LiveFleetView":
        self._live.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self._live.__exit__(None, None, None)


def fleet_table(status: FleetStatus | None, most: int | None = None) -> Grid:
    """The hosts of one run, failures first; of more than `most` the first, and how many follow."""
    grid = Grid()
    for heading in ("host", "group", "state", "now", "done", "heard"):
        grid.column(heading, no_wrap=heading != "now")
    listed = rows(status) if status else []
    for host, group, state, *rest in listed[:most]:
        grid.row(host, group, (state, STYLE.get(state, "")), *rest)
    if left := len(listed[most:]) if most is not None else 0:
        grid.row(f"... {left} more")
    return grid


def rows(status: FleetStatus) -> list[tuple[str, ...]]:
    """Return host, group, state, what it does, progress, seconds since it was last heard; failures first."""
    hosts = status.result.hosts if status.result else {}
    names = sorted(hosts, key=lambda host: (WORST_FIRST.index(hosts[host].state), host))
    return [_row(host, hosts[host], status.now.get(host)) for host in names]


def _row(host: str, known: FleetHost, heard: HostNow | None) -> tuple[str, ...]:
    last = heard.last if heard else None
    running = known.state is HostPhase.RUNNING
    doing = known.error.message if known.error and not running else known.doing
    stage = f"{last.name}: {last.hint}" if running and last and last.phase is Phase.PROGRESS else ""
    count = f"{last.done}/{last.total}" if running and last and last.total else ""
    age = f"{heard.age_s:.0f} s" if running and heard else ""
    return (host, known.group or "", known.state.value, stage or doing, count, age)
