"""The outcome of one request on a fleet: `fleet_result.json`, written while the run goes on and whole at any moment."""

from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from rayprep.base.errors import ErrorType, RayprepError
from rayprep.base.records import Record, Utc, Utf8, parse_utc
from rayprep.base.sealed import Sealed
from rayprep.model.fleet.odd_hosts import Oddity
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.fleet.spec import FleetSpec
from rayprep.model.result import PrepResult, Received, RunStatus
from rayprep.model.stages import StageName, StageStatus, exit_code


class FleetError(Record):
    """Why a host, or the run as a whole, failed."""

    stage: StageName | None = None
    error_type: ErrorType
    message: str
    exit_code: int


class FleetHost(Record):
    """One host of the fleet."""

    state: HostPhase = HostPhase.WAITING
    node_id: str
    address: str
    group: str | None = None
    store: str | None = None
    doing: str = ""
    """What it does now, for people; empty once it has ended."""
    attempts: int = 0
    built: tuple[StageName, ...] = ()
    """What it built for its group in this run."""
    helped: tuple[StageName, ...] = ()
    """What it built a part of, which another host gathered."""
    helped_kernels: dict[StageName, int] = Field(default_factory=dict)
    """So many kernels and modules it compiled in such parts."""
    received: tuple[Received, ...] = ()
    stages: dict[StageName, StageStatus] = Field(default_factory=dict)
    verify: str | None = None
    new_files: int | None = None
    heartbeats: int = 0
    duration_s: float = 0.0
    error: FleetError | None = None
    warnings: tuple[str, ...] = ()
    result: str | None = None
    """The mirrored `prep_result.json`, below the folder of this file."""


class FleetGroup(Record):
    """Hosts whose artifacts are interchangeable."""

    hosts: tuple[Utf8, ...]
    stores: int
    digests: dict[StageName, str]


class FleetRun(Record):
    """Which run this was."""

    run_id: str
    invocation: str
    model: Utf8
    tp: int
    address: str
    rayprep_version: str
    ray_version: str
    started_at: Utc
    finished_at: Utc | None = None
    duration_s: float = 0.0
    spec: FleetSpec


class FleetResult(Sealed):
    """The whole file."""

    schema_version: str = "1"
    status: RunStatus = RunStatus.PARTIAL
    run: FleetRun
    hosts: dict[Utf8, FleetHost] = Field(default_factory=dict)
    groups: dict[str, FleetGroup] = Field(default_factory=dict)
    odd: tuple[Oddity, ...] = ()
    waves: tuple[tuple[Utf8, ...], ...] = ()
    stopped: str = ""
    """Why the remaining waves were left out."""
    errors: tuple[FleetError, ...] = ()
    """Of the run as a whole; a host's own stand with it."""
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0; 130 for an interrupt; the first failing stage's of all hosts; else that of the first error; 3."""
        errors = [*self.errors, *(host.error for host in self.hosts.values() if host.error and _counts(host))]
        if any(each.error_type is ErrorType.INTERRUPTED for each in errors):
            return 130
        stages = [each.stage for each in errors if each.stage]
        if stages:
            return exit_code(stages)
        return errors[0].exit_code if errors else 0 if self.status is RunStatus.OK else 3

    @property
    def status_line(self) -> str:
        """`partial hosts:verified=3,lost=1 deep_gemm:ok=1,noop=2 ... verify:ok=3`, what RESULT_STATUS says."""
        parts = [self.status.value, f"hosts:{_counted(host.state.value for host in self.hosts.values())}"]
        for stage in StageName:
            found = [host.stages[stage].value for host in self.hosts.values() if stage in host.stages]
            parts += [f"{stage}:{_counted(found)}"] if found else []
        proofs = [host.verify for host in self.hosts.values() if host.verify]
        return " ".join([*parts, *([f"verify:{_counted(proofs)}"] if proofs else [])])


def closed(result: FleetResult, error: RayprepError, finished_at: Utc) -> FleetResult:
    """`result`, as its driver left it, ended by `error`: the hosts that were at work are lost."""
    kind = error.error_type or ErrorType.INTERNAL_ERROR
    failed = FleetError(error_type=kind, message=error.line, exit_code=error.exit_code)
    state = HostPhase.FAILED if kind is ErrorType.INTERRUPTED else HostPhase.LOST
    end = {"state": state, "doing": "", "error": failed}
    hosts = {
        name: host.model_copy(update=end) if host.state is HostPhase.RUNNING else host
        for name, host in result.hosts.items()
    }
    good = any(host.state.is_good for host in hosts.values())
    partial = good or kind is ErrorType.INTERRUPTED
    took = parse_utc(finished_at) - parse_utc(result.run.started_at)
    run = result.run.model_copy(update={"finished_at": finished_at, "duration_s": max(0.0, took.total_seconds())})
    return result.model_copy(
        update={
            "status": RunStatus.PARTIAL if partial else RunStatus.ERROR,
            "run": run,
            "hosts": hosts,
            "errors": (*result.errors, failed),
        }
    )


def _counts(host: FleetHost) -> bool:
    """A failure that a second attempt made good is not the run's."""
    return not host.state.is_good


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ",".join(f"{value}={count}" for value, count in sorted(counts.items()))


def end_of(result: PrepResult) -> HostPhase:
    """Of a host that has ended, by its own result."""
    if result.status is not RunStatus.OK:
        return HostPhase.FAILED
    return HostPhase.VERIFIED if result.verify and result.verify.stands else HostPhase.READY


def failure_of(result: PrepResult) -> FleetError | None:
    """The first failure of a host's own result, in the order of the stages."""
    if not result.errors:
        return None
    order = list(StageName)
    first = min(result.errors, key=lambda each: order.index(each.stage) if each.stage else len(order))
    return FleetError(stage=first.stage, error_type=first.error_type, message=first.message, exit_code=result.exit_code)
