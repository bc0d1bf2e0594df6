"""What a run has left for people to read: its results, its events, the ends of its logs. One host's, or a fleet's."""

from dataclasses import dataclass, field

from rayprep.model.events import Event
from rayprep.model.fleet.result import FleetHost, FleetResult, end_of, failure_of
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.proof import VERIFY
from rayprep.model.result import PrepResult
from rayprep.model.stages import StageStatus

RECEIVE = "receive"
"""The name, in events, of taking in what another host has built."""
LogTails = dict[tuple[str, str], tuple[str, ...]]
"""Host and stage, or the proof -> the last lines of its log."""


@dataclass(frozen=True)
class RunRecord:
    """A single host's run is a fleet of one, whose `fleet` is null."""

    run_id: str
    fleet: FleetResult | None
    hosts: dict[str, FleetHost]
    results: dict[str, PrepResult]
    """Those of the hosts that have written one in this run."""
    events: tuple[Event, ...] = ()
    """All but the signs of progress."""
    last_ts: str | None = None
    """When something was last said, be it a sign of progress."""
    log_tails: LogTails = field(default_factory=dict)
    """Of what failed, where the result does not hold them."""
    damaged: tuple[str, ...] = ()
    """What is missing or cannot be read, one line each."""

    @property
    def result(self) -> FleetResult | PrepResult:
        """Of the run as a whole."""
        return self.fleet or next(iter(self.results.values()))


def only_host(result: PrepResult) -> FleetHost:
    """A single host's line, as the result of a fleet would have it."""
    verify = result.verify
    return FleetHost(
        state=_phase(result),
        node_id="",
        address="",
        attempts=1,
        built=tuple(stage for stage, each in result.stages.items() if each.status is StageStatus.OK),
        stages={stage: each.status for stage, each in result.stages.items()},
        verify=verify.status if verify else None,
        new_files=verify.new_files if verify and verify.ran else None,
        heartbeats=sum(result.heartbeats.values()),
        duration_s=result.run.duration_s,
        error=failure_of(result),
        warnings=result.warnings,
    )


def _phase(result: PrepResult) -> HostPhase:
    if result.run.finished_at is None:
        return HostPhase.RUNNING
    return end_of(result)


def failed_without_tail(result: PrepResult) -> list[str]:
    """The stages that failed, and the proof, where the result does not hold the end of the log."""
    failed = [
        stage.value
        for stage, each in result.stages.items()
        if each.status is StageStatus.ERROR and not any(error.log_tail for error in each.errors)
    ]
    return failed + ([VERIFY] if result.verify and result.verify.status == "error" else [])
