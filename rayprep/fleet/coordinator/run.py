"""What the coordinator keeps of one run: its events, its log, its hosts' results, and what `status` shows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rayprep.base.records import Record, utc_now
from rayprep.base.sealed import Sealed
from rayprep.base.written import result_text, shown_text
from rayprep.host.layout import Layout, root_unfit
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.status import FleetStatus, HostNow
from rayprep.model.metrics import Sample, fleet_samples, host_samples, state_samples
from rayprep.model.result import PrepResult
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.report.session_log import SessionLog


class KeptRun:
    """One run of one host or of a fleet. Times are of this process's monotonic clock.

    A telemetry root that is gone, or full, costs the files on it and never the run. The driver is told, once.
    """

    def __init__(self, layout: Layout, run_id: str) -> None:
        self.run_id, self._layout = run_id, layout
        self._events: list[Event] = []
        self._dropped = 0
        """So many came before `_events`: their driver has them, and the log."""
        self._last: dict[str, tuple[float, Event]] = {}
        self._result: FleetResult | None = None
        self._samples: dict[str, list[Sample]] = {}
        """Of each host's own result."""
        self.heard = time.monotonic()
        """When its driver last said something."""
        self._unfit = False
        self._log: SessionLog | None = None
        with self._where_it_can():
            self._log = SessionLog(layout.session_log(run_id))

    @contextmanager
    def _where_it_can(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._unfit:
                said = f"{root_unfit(self._layout.telemetry, 'telemetry', error).line}: the work goes on, unlogged"
                self._events.append(event("ensure", Phase.WARNING, message=said))
            self._unfit = True

    def record(self, events: list[Event]) -> None:
        for each in events:
            self._events.append(each)
            if each.host:
                self._last[each.host] = (time.monotonic(), each)
            with self._where_it_can():
                if self._log:
                    self._log.record(each)

    def since(self, count: int) -> list[Event]:
        """All events after the first `count`, which nobody asks for any more."""
        self.heard = time.monotonic()
        known = min(max(0, count - self._dropped), len(self._events))
        del self._events[:known]
        self._dropped += known
        return list(self._events)

    def snapshot(self, host: str | None, snapshot: ProfileSnapshot) -> None:
        self._write(host, "cache_snapshot.json", snapshot)

    def mirror(self, host: str, result: PrepResult) -> None:
        self._samples[host] = host_samples(result)
        self._write(host, "prep_result.json", result)

    def samples(self) -> list[Sample]:
        """What the run as it stands is to monitoring. Counters count once, when it has finished."""
        if self._result is None:
            return []
        states = state_samples(self._result.hosts.values())
        if self._result.run.finished_at is None:
            return states
        return [*states, *fleet_samples(self._result.hosts), *(one for each in self._samples.values() for one in each)]

    def update(self, result: FleetResult) -> None:
        self.heard = time.monotonic()
        self._result = result
        self._write(None, "fleet_result.json", result)

    def abandon(self) -> bool:
        """Closes the result of a driver that is not heard any more; it stays `partial`. False where it was closed."""
        open_one = self._result if self._result and self._result.run.finished_at is None else None
        if open_one:
            run = open_one.run.model_copy(update={"finished_at": utc_now()})
            why = "the driver of this run was not heard any more"
            self.update(open_one.model_copy(update={"run": run, "warnings": (*open_one.warnings, why)}))
        with self._where_it_can():
            if self._log:
                self._log.close()
        return open_one is not None

    def status(self) -> FleetStatus:
        now = time.monotonic()
        hosts = {host: HostNow(age_s=round(now - when, 1), last=event) for host, (when, event) in self._last.items()}
        return FleetStatus(run_id=self.run_id, taken_at=utc_now(), result=self._result, now=hosts)

    def _write(self, host: str | None, name: str, content: Record) -> None:
        folder = replace(self._layout, host=host).run(self.run_id)
        with self._where_it_can():
            text = result_text(content) if isinstance(content, Sealed) else shown_text(content)
            self._layout.runs.write(folder / name, text)
