"""Keeps the result of a run on disk while it goes on: whole, parseable, and true after every stage."""

import contextlib
import re
import socket
import time
from collections import Counter
from pathlib import Path

from rayprep import __version__
from rayprep.base.errors import ErrorType, RayprepError, StageError
from rayprep.base.records import utc_now
from rayprep.base.secrets import redacted_command
from rayprep.base.written import result_text
from rayprep.host.environment import server_cache_env
from rayprep.host.layout import root_unfit
from rayprep.host.owned import OwnedTree
from rayprep.model.events import Event, Phase
from rayprep.model.plan import Action, Decision
from rayprep.model.proof import VerifyResult
from rayprep.model.result import (
    Artifacts,
    MoeSettings,
    PrepResult,
    RunBlock,
    RunError,
    Settings,
    StageErrorRecord,
    StageResult,
    overall_status,
)
from rayprep.model.spec import SPEC_VERSION
from rayprep.model.stages import STAGES, StageName, StageStatus
from rayprep.model.telemetry import TelemetryProbe, query_of
from rayprep.node.request import NodeRequest
from rayprep.node.survey import Survey
from rayprep.sglang.flags import redacted


class Recorder:
    """Writes `prep_result.json` at the start, after every stage and at the end. `partial` until the end."""

    def __init__(self, request: NodeRequest, survey: Survey) -> None:
        self.path = survey.layout.result(request.run_id)
        self._started = time.monotonic()
        self._survey = survey
        self._request = request
        self._stages: dict[StageName, StageResult] = {}
        self._errors: list[RunError] = []
        self._warnings: list[str] = list(request.resolved.warnings)
        self._verify: VerifyResult | None = None
        self._waited_s = request.waited_s
        self._heartbeats: Counter[str] = Counter()
        container = survey.layout.container_run
        self._probe = TelemetryProbe(
            with_run_filter=query_of(container.run_id if container else request.run_id), reason="not_probed"
        )
        self._run = _run_block(request, survey)
        try:
            _keep_as_history(survey.layout.runs, self.path)
        except OSError as error:
            raise root_unfit(survey.layout.telemetry, "telemetry", error) from None
        self.write()

    @property
    def result(self) -> PrepResult:
        return self._build(finished=self._run.finished_at is not None)

    def stage(self, name: StageName, result: StageResult) -> None:
        self._stages[name] = result
        self._errors += [
            RunError(stage=name, error_type=error.error_type, message=error.message) for error in result.errors
        ]
        self.write()

    def missed(self, name: StageName, units: tuple[str, ...]) -> None:
        """A server asked for more than the stage had planned."""
        result = self._stages.get(name)
        if result is None:
            return
        artifacts = (result.artifacts or Artifacts()).model_copy(update={"missed": units})
        self._stages[name] = result.model_copy(update={"artifacts": artifacts})
        self.write()

    def verify(self, result: VerifyResult) -> None:
        self._verify = result
        if result.status == "error":
            kind = result.error_type or ErrorType.VERIFY_FAILED
            self._errors.append(RunError(stage=StageName.SERVE, error_type=kind, message=result.message or ""))
        self.write()

    def failed(self, error: RayprepError) -> None:
        """A failure before any stage, or of the run as a whole."""
        kind = error.error_type or ErrorType.INTERNAL_ERROR
        self._errors.append(RunError(stage=None, error_type=kind, message=error.line))
        self.write()

    def heard(self, each: Event) -> None:
        """Counts a stage's signs of life."""
        if each.phase is Phase.PROGRESS:
            self._heartbeats[each.name] += 1

    def waited(self, seconds: float) -> None:
        self._waited_s += seconds

    def probed(self, found: TelemetryProbe) -> None:
        self._probe = found

    def warn(self, message: str) -> None:
        self._warnings.append(message)

    def finish(self) -> PrepResult:
        self._run = self._run.model_copy(update={"finished_at": utc_now(), "duration_s": self._elapsed()})
        return self.write()

    def write(self) -> PrepResult:
        result = self.result
        try:
            self._survey.layout.runs.write(self.path, result_text(result))
        except OSError as error:
            raise root_unfit(self._survey.layout.telemetry, "telemetry", error) from None
        return result

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _build(self, finished: bool) -> PrepResult:
        errors = tuple(self._errors)
        return PrepResult(
            status=overall_status(self._stages, errors, finished),
            run=self._run if finished else self._run.model_copy(update={"duration_s": self._elapsed()}),
            # In the order of the stages, whatever order they were recorded in.
            stages={name: self._stages[name] for name in StageName if name in self._stages},
            verify=self._verify,
            telemetry_probe=self._probe,
            errors=errors,
            warnings=tuple(self._warnings),
            node=self._request.node,
            snapshot_before=self._request.before,
            waited_s=round(self._waited_s, 3),
            heartbeats=dict(self._heartbeats),
        )


_KEPT = re.compile(r"prep_result\.([0-9]{1,18})\.json")


def _keep_as_history(runs: OwnedTree, path: Path) -> None:
    """A second run under one id keeps the first as `history/prep_result.<n>.json`, with the page made of it."""
    try:
        earlier = runs.read(path)
    except FileNotFoundError:
        return
    history = path.parent / "history"
    matches = map(_KEPT.fullmatch, runs.names(history))
    number = 1 + max((int(match[1]) for match in matches if match), default=0)
    # Copied, not moved: whoever reads meanwhile finds the old result, and never none.
    runs.write(history / f"prep_result.{number}.json", earlier, runs.status(path).st_mtime)
    with contextlib.suppress(FileNotFoundError):
        runs.rename(path.parent / "report.html", history / f"report.{number}.html")


def _run_block(request: NodeRequest, survey: Survey) -> RunBlock:
    signature = survey.signature
    return RunBlock(
        run_id=request.run_id,
        invocation=request.invocation,
        model_slug=survey.model.slug,
        tp=request.resolved.spec.tp,
        device_name=signature.device_name,
        cuda=signature.cuda,
        torch_version=signature.torch_version,
        triton_version=signature.triton_version,
        sglang_commit=signature.sglang_commit,
        sglang_version=signature.sglang_version,
        host=request.node.host if request.node else socket.gethostname(),
        rayprep_version=__version__,
        started_at=utc_now(),
        signature=signature,
        settings=_settings(request, survey),
        session_log=survey.layout.located(survey.layout.session_log(request.run_id)),
    )


def _settings(request: NodeRequest, survey: Survey) -> Settings:
    resolved, spec = request.resolved, request.resolved.spec
    return Settings(
        source=resolved.source,
        spec_version=SPEC_VERSION,
        model=spec.model,
        model_source=str(survey.model.source),
        config_digest=survey.model.digest,
        tp=spec.tp,
        ops={stage: spec.op(stage).value if stage in spec.selected else "skip" for stage in StageName},
        blocks=spec.block_sizes or survey.model.architecture.weight_block_size or (),
        batch_sizes=spec.batch_sizes,
        max_seq_len=spec.max_seq_len,
        moe=MoeSettings(
            strategy=spec.moe_strategy.value,
            dtype=spec.moe_dtype,
            batch_sizes=spec.moe_batch_sizes,
            tuner_script=spec.moe_tuner_script,
        ),
        device=survey.request.device.value,
        server_args=redacted(spec.server_args),
        timeout_s=spec.timeout_s,
        heartbeat_s=spec.heartbeat_s,
        warmup_port=spec.warmup_port,
        mem_fraction=spec.mem_fraction,
        load_format=spec.load_format,
        deep_gemm_via=spec.deep_gemm_via.value,
        slices=spec.slices,
        verify=spec.verify,
        otlp_endpoint=spec.otlp_endpoint,
        server_command=redacted_command(spec.server_command),
        env={**server_cache_env(survey.layout), **survey.layout.contract_env()},
        ignored_spec_keys=resolved.ignored_spec_keys,
        sources=resolved.sources,
    )


def settled_result(decision: Decision, survey: Survey) -> StageResult:
    """The result of a stage that has nothing to run: noop, skipped, or refused."""
    if decision.action is Action.NOOP:
        return StageResult(
            ran=False,
            status=StageStatus.NOOP,
            status_code=0,
            reason=decision.reason,
            detail=decision.detail or None,
            signature=survey.signature,
            artifacts=Artifacts(units=decision.work.units) if decision.work else None,
        )
    if decision.action is Action.SKIP:
        return StageResult(
            ran=False,
            status=StageStatus.SKIPPED,
            status_code=0,
            reason=decision.reason,
            detail=decision.detail or None,
        )
    kind = decision.error_type or ErrorType.UNSUPPORTED
    return failed_result(decision.stage, StageError(kind, decision.detail, hint=decision.hint), ran=False)


def failed_result(stage: StageName, error: RayprepError, *, ran: bool, duration_s: float = 0.0) -> StageResult:
    """The result of a stage that failed with `error`."""
    kind = error.error_type or ErrorType.INTERNAL_ERROR
    payload = error.payload if isinstance(error, StageError) else {}
    record = StageErrorRecord(
        error_type=kind,
        message=error.message,
        hint=error.hint,
        required_bytes=payload.get("required_bytes"),
        free_bytes=payload.get("free_bytes"),
        log_tail=error.log_tail if isinstance(error, StageError) else (),
    )
    return StageResult(
        ran=ran,
        status=StageStatus.ERROR,
        status_code=STAGES[stage].code,
        duration_s=duration_s,
        error_type=kind,
        errors=(record,),
    )
