"""Runs as they lie under a telemetry root, written through the models, as a driver and its hosts would."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayprep.base.errors import ErrorType
from rayprep.base.file_names import file_name
from rayprep.base.records import parse_utc, to_json, utc_from_timestamp
from rayprep.host.layout import Layout
from rayprep.model.events import Event, Phase
from rayprep.model.fleet.odd_hosts import Oddity
from rayprep.model.fleet.result import FleetError, FleetGroup, FleetHost, FleetResult, failure_of
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.proof import VerifyResult
from rayprep.model.result import (
    Artifacts,
    NodeBlock,
    PrepResult,
    Received,
    RunError,
    RunStatus,
    StageErrorRecord,
    StageResult,
    Tally,
)
from rayprep.model.stages import STAGES, StageName, StageStatus
from rayprep.report.session_log import SessionLog
from tests.model.samples import MOMENT, fleet_run, prep_result

BUILT_S = {StageName.DEEP_GEMM: 18.25, StageName.FLASHINFER: 92.0, StageName.SERVE: 61.5}
"""What the first host builds: the second stage beside the two others."""
STARTS_S = {StageName.DEEP_GEMM: 3, StageName.FLASHINFER: 3, StageName.SERVE: 22}
SHIPPED = (StageName.DEEP_GEMM, StageName.FLASHINFER, StageName.SERVE)
LOG_TAIL = ("[3/9] nvcc -arch=sm_90a norm.cu", "ptxas fatal: Unsupported .version 9.2; current version is '9.0'")
OWN_MESSAGE = "flashinfer's norm does not compile on {host}: nvcc ended by status 255"
HINT = "install nvcc 13.0, as the other hosts have"
GEMM_WARNING = "deep_gemm: the server needed more than was planned: GEMM_NT_F8F8BF16 N=5120 K=2048 groups=1"


def at(seconds: float) -> str:
    return utc_from_timestamp(parse_utc(MOMENT).timestamp() + seconds)


def spans(name: str, start: float, took: float, host: str | None, status: str = "ok") -> list[Event]:
    """The two events of a stage."""
    return [
        Event(name=name, phase=Phase.START, ts=at(start), host=host),
        Event(name=name, phase=Phase.END, ts=at(start + took), host=host, status=status, duration_s=took),
    ]


def built(stage: StageName, took: float) -> StageResult:
    artifacts = Artifacts(units=("a", "b", "c"), built=("a", "b"), files=Tally(count=1234, bytes=5 << 20))
    return StageResult(ran=True, status=StageStatus.OK, status_code=0, duration_s=took, artifacts=artifacts)


def broken(stage: StageName, host: str, tail: Sequence[str] = LOG_TAIL) -> StageResult:
    kind = ErrorType.TOOLCHAIN_MISMATCH
    error = StageErrorRecord(error_type=kind, message=OWN_MESSAGE.format(host=host), hint=HINT, log_tail=tuple(tail))
    code = STAGES[stage].code
    return StageResult(
        ran=True, status=StageStatus.ERROR, status_code=code, duration_s=40.0, error_type=kind, errors=(error,)
    )


def proof(**changes: object) -> VerifyResult:
    return VerifyResult.model_validate({"ran": True, "status": "ok", "duration_s": 35.0, "ready_s": 30.0, **changes})


@dataclass
class LeftRun:
    """One run, which a test changes before it writes it."""

    telemetry: Path
    fleet: FleetResult | None
    results: dict[str, PrepResult]
    events: list[Event] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(self.telemetry / "profiles", self.telemetry)

    @property
    def folder(self) -> Path:
        return self.layout.run("run-1")

    def host_file(self, host: str) -> Path:
        return (
            self.folder / "hosts" / file_name(host) / "prep_result.json"
            if self.fleet
            else self.folder / "prep_result.json"
        )

    def write(self) -> "LeftRun":
        self.folder.mkdir(parents=True)
        if self.fleet:
            (self.folder / "fleet_result.json").write_text(to_json(self.fleet), encoding="utf-8")
        for host, result in self.results.items():
            path = self.host_file(host)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(result), encoding="utf-8")
        log = SessionLog(self.layout.session_log("run-1"))
        for each in sorted(self.events, key=lambda each: each.ts):
            log.record(each)
        log.close()
        return self


def single(telemetry: Path, *, fails: bool = False, ended: bool = True) -> LeftRun:
    """One host that builds three stages and proves them, or whose `flashinfer` fails, or that is killed in it."""
    stages = _stages({stage: built(stage, took) for stage, took in BUILT_S.items()})
    if fails:
        stages[StageName.FLASHINFER] = broken(StageName.FLASHINFER, "host-1")
    result = _result("host-1", stages, None)
    events = [each for stage, took in BUILT_S.items() for each in spans(stage, STARTS_S[stage], took, None)]
    if ended:
        return LeftRun(telemetry, None, {"host-1": result}, [*events, *spans("verify", 96, 35, None)])
    run = result.run.model_copy(update={"finished_at": None, "duration_s": 21.3})
    so_far = {StageName.DEEP_GEMM: stages[StageName.DEEP_GEMM]}
    changes = {"run": run, "status": RunStatus.PARTIAL, "stages": so_far, "verify": None}
    still = Event(name=StageName.FLASHINFER, phase=Phase.PROGRESS, ts=at(63), hint="compiling", done=2, total=9)
    return LeftRun(telemetry, None, {"host-1": result.model_copy(update=changes)}, [*events[:3], still])


def fleet(telemetry: Path, names: Sequence[str], *, failed: Iterable[str] = (), lost: Iterable[str] = ()) -> LeftRun:
    """The first host builds; two hosts after it receive from it, and the others from these in turn, and prove."""
    failed, lost = set(failed), set(lost)
    results: dict[str, PrepResult] = {}
    hosts: dict[str, FleetHost] = {}
    events: list[Event] = []
    for number, name in enumerate(names):
        source = None if number == 0 else names[0] if number < 3 else names[number % 3]
        if name in lost:
            hosts[name] = _lost(name)
            events += [*_receiving(name, source, number)[:1], *_warned(name)]
            continue
        received = (_received(source),) if source else ()
        stages = _stages({} if source else {stage: built(stage, took) for stage, took in BUILT_S.items()}, noop=SHIPPED)
        if name in failed:
            stages[StageName.FLASHINFER] = broken(StageName.FLASHINFER, name)
        node = NodeBlock(host=name, node_id=f"n{number}", address="10.0.0.1", group="group-1", received=received)
        results[name] = _result(name, stages, node)
        hosts[name] = _host(number, results[name], received)
        events += _building(name) if source is None else _receiving(name, source, number)
        events += _failing(name, number) if name in failed else spans("verify", 100 + 4 * (number % 9), 35, name)
    return LeftRun(telemetry, _fleet_result(hosts), results, events)


def _stages(own: dict[StageName, StageResult], noop: Sequence[StageName] = ()) -> dict[StageName, StageResult]:
    skip = StageResult(ran=False, status=StageStatus.SKIPPED, status_code=0, reason="requested")
    valid = StageResult(ran=False, status=StageStatus.NOOP, status_code=0, reason="valid_signature")
    return {stage: own.get(stage, valid if stage in noop else skip) for stage in StageName}


def _result(host: str, stages: dict[StageName, StageResult], node: NodeBlock | None) -> PrepResult:
    sample = prep_result({})
    errors = tuple(
        RunError(stage=stage, error_type=error.error_type, message=error.message)
        for stage, each in stages.items()
        for error in each.errors
    )
    return sample.model_copy(
        update={
            "run": sample.run.model_copy(update={"host": host, "invocation": "first"}),
            "status": RunStatus.PARTIAL if errors else RunStatus.OK,
            "stages": stages,
            "verify": VerifyResult(ran=False, status="skipped", reason="flashinfer_failed") if errors else proof(),
            "errors": errors,
            "node": node,
            "warnings": (GEMM_WARNING,) if node is None or not node.received else (),
        }
    )


def _host(number: int, result: PrepResult, received: tuple[Received, ...]) -> FleetHost:
    assert result.node is not None
    return FleetHost(
        state=HostPhase.FAILED if result.errors else HostPhase.VERIFIED,
        node_id=result.node.node_id,
        address=result.node.address,
        group="group-1",
        store="shared" if number in (3, 4) else f"store-{number}",
        attempts=1,
        built=() if received else SHIPPED,
        received=received,
        stages={stage: each.status for stage, each in result.stages.items()},
        verify=result.verify.status if result.verify else None,
        new_files=0,
        duration_s=131.0 if received else 133.5,
        error=failure_of(result),
        warnings=result.warnings,
        result=f"hosts/{result.node.host}/prep_result.json",
    )


def _lost(name: str) -> FleetHost:
    error = FleetError(
        error_type=ErrorType.NODE_LOST, message=f"{name} has not answered for 60 s (mend it)", exit_code=3
    )
    return FleetHost(state=HostPhase.LOST, node_id="n", address="10.0.0.2", group="group-1", attempts=2, error=error)


def _received(source: str) -> Received:
    return Received(source=source, stages=SHIPPED, files=2468, bytes=311 << 20, duration_s=2.5)


def _building(name: str) -> Iterator[Event]:
    for stage, took in BUILT_S.items():
        yield from spans(stage, STARTS_S[stage], took, name)
    yield Event(name="ensure", phase=Phase.WARNING, ts=at(90), host=name, message=GEMM_WARNING)


def _receiving(name: str, source: str | None, number: int) -> list[Event]:
    return spans("receive", 96 + number % 9, 2.5, name) if source else []


def _failing(name: str, number: int) -> list[Event]:
    return spans("flashinfer", 100 + number % 9, 40.0, name, "error")


def _warned(name: str) -> list[Event]:
    return [Event(name="ensure", phase=Phase.WARNING, ts=at(120), host=name, message=f"{name} was lost: ActorDied")]


def _fleet_result(hosts: dict[str, FleetHost]) -> FleetResult:
    run = fleet_run(
        run_id="run-1",
        invocation="first",
        model="qwen3-30b-a3b",
        rayprep_version="0.1.0",
        ray_version="2.55.0",
        finished_at=at(180),
        duration_s=180.0,
    )
    verified = all(each.state is HostPhase.VERIFIED for each in hosts.values())
    last = list(hosts)[-1]
    odd = Oddity(
        field="driver_version", value="570.1", hosts=(last,), usual="580.65.06", usual_count=len(hosts) - 1, binds=()
    )
    return FleetResult(
        status=RunStatus.OK if verified else RunStatus.PARTIAL,
        run=run,
        hosts=hosts,
        groups={"group-1": FleetGroup(hosts=tuple(hosts), stores=len(hosts) - 1, digests={})},
        odd=(odd,) if len(hosts) > 1 else (),
        waves=(tuple(hosts),),
    )
