"""What the driver of a fleet keeps and shows: the fleet's result, written as it changes, and everybody's events."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import ray

import rayprep
from rayprep.base.errors import ErrorType, RayprepError
from rayprep.base.file_names import file_name
from rayprep.base.records import utc_now
from rayprep.base.written import result_text
from rayprep.fleet.agent.messages import Asked
from rayprep.fleet.handles import Handle
from rayprep.fleet.remote_host import Member
from rayprep.host.layout import Layout, root_unfit
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.grouping import Grouping
from rayprep.model.fleet.result import FleetError, FleetGroup, FleetHost, FleetResult, FleetRun
from rayprep.model.fleet.rollout import Rollout, fleet_status
from rayprep.model.fleet.spec import FleetSpec
from rayprep.model.result import PrepResult, RunStatus
from rayprep.report.fleet_view import FleetView

CALL_S = 10.0
DRAIN_EVERY_S = SHOW_EVERY_S = 0.25
DRAINS_PER_GATHER = 5
"""Where hosts gather their events for long, there is not much new four times a second."""
GATHERS_PER_SAVE = 3
"""A large fleet's whole result takes the coordinator longer than what its hosts say meanwhile."""


class FleetRecord:
    """One run's. A coordinator that does not answer costs the log and the live state, and never the work."""

    def __init__(
        self, asked: Asked, fleet: FleetSpec, address: str, layout: Layout, coordinator: Handle, view: FleetView
    ) -> None:
        self._asked, self._layout, self._coordinator, self._view = asked, layout, coordinator, view
        self._started, self._drained, self._seen = time.monotonic(), 0.0, 0
        self._drain_every_s = max(DRAIN_EVERY_S, asked.gather_s / DRAINS_PER_GATHER)
        self._shown = self._saved = 0.0
        self._unsaved = self._silent = False
        self._results: dict[str, PrepResult] = {}
        """The hosts' own, as last heard; kept for a coordinator that has forgotten them."""
        spec = asked.resolved.spec
        run = FleetRun(
            run_id=asked.run_id,
            invocation=asked.invocation,
            model=spec.model,
            tp=spec.tp,
            address=address,
            rayprep_version=rayprep.__version__,
            ray_version=ray.__version__,
            started_at=utc_now(),
            spec=fleet,
        )
        self.result = FleetResult(run=run, warnings=asked.resolved.warnings)
        self._view.update(self.result)
        self._open()

    def _open(self) -> None:
        self._coordinator.open_run.remote(self._layout, self._asked.run_id)
        for host, result in self._results.items():
            self._coordinator.mirror.remote(self._asked.run_id, host, result)

    def groups(self, grouping: Grouping) -> None:
        """Keeps who is alike, and shows who is not, before anything is built."""
        groups = {
            group.name: FleetGroup(hosts=group.hosts, stores=len(group.stores), digests=group.digests)
            for group in grouping.groups
        }
        self._change(groups=groups, odd=grouping.odd)
        for oddity in grouping.odd:
            binds = f" (so {', '.join(oddity.binds)} cannot be shared)" if oddity.binds else ""
            self.say(None, Phase.WARNING, message=f"{oddity}{binds}")
        for name, group in groups.items():
            hosts = f"{len(group.hosts)} hosts" if len(group.hosts) > 1 else group.hosts[0]
            stores = f" on {group.stores} stores" if group.stores > 1 else ""
            self.say(None, Phase.PROGRESS, hint=f"{name}: {hosts}{stores}")

    def waves(self, rollout: Rollout) -> None:
        self._change(waves=rollout.waves)
        self.changed()

    def stopped(self, why: str) -> None:
        if why:
            self._change(stopped=why)
            self.say(None, Phase.WARNING, message=why)

    def fail(self, error: RayprepError) -> None:
        """Of the run as a whole."""
        kind = error.error_type or ErrorType.UNSUPPORTED
        failed = FleetError(error_type=kind, message=error.line, exit_code=error.exit_code)
        self._change(errors=(*self.result.errors, failed))

    def host_line(self, member: Member, result: PrepResult) -> FleetHost:
        """What a host's own result says of it, which the coordinator keeps a copy of."""
        self._results[member.host] = result
        self._coordinator.mirror.remote(self._asked.run_id, member.host, result)
        verify = result.verify
        return member.record.model_copy(
            update={
                "stages": {stage: each.status for stage, each in result.stages.items()},
                "verify": verify.status if verify else None,
                "new_files": verify.new_files if verify and verify.ran else None,
                "heartbeats": sum(result.heartbeats.values()),
                "warnings": result.warnings,
                "result": f"hosts/{file_name(member.host)}/prep_result.json",
            }
        )

    def changed(self) -> None:
        """Some host has ended a step, which `show` will hand on."""
        self._unsaved = True

    def show(self, members: Mapping[str, Member]) -> None:
        """Shows all hosts as they stand, and where one has changed hands them to the coordinator, which writes them.

        Both go as a whole each time, so that a large fleet's go less often.
        """
        now = time.monotonic()
        if now - self._shown < SHOW_EVERY_S:
            return
        self._shown = now
        self._take(members)
        self._view.update(self.result)
        if self._unsaved and now - self._saved >= GATHERS_PER_SAVE * self._asked.gather_s:
            self._coordinator.update.remote(self._asked.run_id, self.result)
            self._saved, self._unsaved = now, False

    def finish(self, rollout: Rollout, members: Mapping[str, Member], *, interrupted: bool) -> FleetResult:
        """Writes the end: by the coordinator on the head, and here, which are mostly the same files."""
        self._take(members)
        states = {host: member.state for host, member in members.items()}
        status = fleet_status(rollout, states, interrupted=interrupted)
        if self.result.errors and status is RunStatus.OK:
            status = RunStatus.PARTIAL
        if self.result.errors and not interrupted and not any(state.phase.is_good for state in states.values()):
            status = RunStatus.ERROR
        run = self.result.run.model_copy(update={"finished_at": utc_now()})
        self._change(status=status, run=run)
        self.say(None, Phase.END, status=status.value, duration_s=self.result.run.duration_s)
        self.drain(at_once=True)  # tells whether the coordinator still knows this run
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._coordinator.update.remote(self._asked.run_id, self.result), timeout=CALL_S)
        self.drain(at_once=True)
        self._write_here()
        return self.result

    def _write_here(self) -> None:
        """The work is done, and the hosts have their own results: a root that fails now costs these files alone."""
        folder = self._layout.run(self._asked.run_id)
        results: dict[str, PrepResult | FleetResult] = {
            f"hosts/{file_name(host)}/prep_result.json": result for host, result in self._results.items()
        }
        lost, why = list[str](), OSError()
        for name, result in {**results, "fleet_result.json": self.result}.items():
            try:
                write_unless_there(self._layout, folder / name, result)
            except OSError as error:
                lost.append(name)
                why = error
        if lost:
            unfit = root_unfit(self._layout.telemetry, "telemetry", why)
            more = f", with {len(lost) - 1} more" if len(lost) > 1 else ""
            message = f"{unfit.line}: {folder / lost[-1]} is missing or out of date{more}; the hosts keep their own"
            self._view.show(event("ensure", Phase.WARNING, message=message))

    def _take(self, members: Mapping[str, Member]) -> None:
        took = round(time.monotonic() - self._started, 3)
        run = self.result.run.model_copy(update={"duration_s": took})
        self._change(hosts={host: member.current() for host, member in members.items()}, run=run)

    def _change(self, **fields: object) -> None:
        self.result = self.result.model_copy(update=fields)

    def say(self, host: str | None, phase: Phase, **fields: object) -> None:
        """An event of the driver's own."""
        each = event("ensure", phase, host=host, **fields)
        if self._silent:
            self._view.show(each)
        else:
            self._coordinator.record.remote(self._asked.run_id, [each])

    def drain(self, *, at_once: bool = False) -> None:
        """Shows what was said since the last time."""
        if not at_once and time.monotonic() - self._drained < self._drain_every_s:
            return
        self._drained = time.monotonic()
        self._view.refresh()
        try:
            asked = self._coordinator.events_since.remote(self._asked.run_id, self._seen)
            events: list[Event] | None = ray.get(asked, timeout=CALL_S)
        except ray.exceptions.RayError as error:
            self._fell_silent(error)
            return
        self._silent = False
        if events is None:  # one that came back knows nothing of us
            self._seen = 0
            self._open()
            return
        for each in events:
            self._view.show(each)
        self._seen += len(events)

    def _fell_silent(self, error: Exception) -> None:
        if not self._silent:
            message = f"the coordinator does not answer ({type(error).__name__}): the work goes on, unlogged"
            self._view.show(event("ensure", Phase.WARNING, message=message))
        self._silent = True


def write_unless_there(layout: Layout, path: Path, result: PrepResult | FleetResult) -> None:
    """Where this host's folder is the head's, the coordinator has written it. Raises OSError."""
    text = result_text(result)
    with contextlib.suppress(OSError, ValueError):
        if layout.runs.read(path).decode() == text:
            return
    layout.runs.write(path, text)
