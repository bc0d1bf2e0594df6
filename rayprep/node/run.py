"""Carries out a request on this host: locks, repairs, runs the stages one after another, records each."""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from rayprep.host.environment import child_env
from rayprep.host.layout import os_error_type
from rayprep.host.leftovers import leftovers
from rayprep.host.locks import HeldLocks, Holder, acquire, gpu_lock_paths
from rayprep.host.process import end_processes
from rayprep.host.toolchain import can_trace
from rayprep.model.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.model.events import Event, Phase, event
from rayprep.model.gemm import GemmShape
from rayprep.model.moe_configs import MoeConfigs
from rayprep.model.plan import Action, Decision, waves
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.model.torch_compile import ENABLE, without
from rayprep.model.tracing import PACKAGES
from rayprep.model.verification import VERIFY, skipped
from rayprep.node.adopt import adopt
from rayprep.node.collect import record_skip
from rayprep.node.moe_check import confirmed, keep_word, with_config
from rayprep.node.record import Recorder, settled_result
from rayprep.node.request import NodeRequest
from rayprep.node.stage_run import StageRun
from rayprep.node.survey import Survey, exact_completions, take_survey

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]


def never_cancelled() -> bool:
    return False


def ensure(
    request: NodeRequest,
    environ: Mapping[str, str],
    emit: Emit,
    cancelled: Cancelled = never_cancelled,
    survey: Survey | None = None,
) -> PrepResult:
    """Does what the plan says and returns the result that it has written.

    Args:
        survey: a look just taken, so that a run with nothing to do looks only once.

    Raises:
        BadRequest, HostUnfit: before anything is written; later failures are in the result.
    """
    survey = survey or take_survey(request, environ)
    run = _NodeRun(request, environ, emit, cancelled, survey)
    return run.go()


class _NodeRun:
    def __init__(
        self, request: NodeRequest, environ: Mapping[str, str], emit: Emit, cancelled: Cancelled, survey: Survey
    ) -> None:
        self.request, self.environ, self.cancelled, self.survey = request, environ, cancelled, survey
        self._say = emit
        self._abandoned = threading.Event()
        self._worked = survey.plan.needs_work
        self.recorder = Recorder(request, survey)

    def emit(self, each: Event) -> None:
        self.recorder.heard(each)
        self._say(each)

    def go(self) -> PrepResult:
        for warning in self.request.resolved.warnings:
            self.emit(event("ensure", Phase.WARNING, message=warning))
        if self.request.resolved.spec.otlp_endpoint and not can_trace():
            self._warn(f"no traces: {' or '.join(PACKAGES)} is not installed (pip install 'rayprep[otel]')")
        try:
            if self._worked:
                self._work_under_locks()
            else:
                self._settle_all()
        except RayprepError as error:
            if not isinstance(error, Interrupted) or not self.recorder.result.errors:
                self.recorder.failed(error)
            self._skip_the_rest(error)
        result = self._finish()
        self.emit(event("ensure", Phase.END, status=result.status.value, duration_s=result.run.duration_s))
        return result

    def _finish(self) -> PrepResult:
        container = self.survey.layout.container_run
        if not self._worked and not container:
            return self.recorder.finish()
        from rayprep.node import outside  # which a run with nothing to do spares

        if self._worked:
            outside.share(self.survey, self.recorder.result)
            self.recorder.probed(outside.probed(self.survey, self.recorder.result))
        if container and (problem := outside.tell_ended(container, self.recorder.result)):
            self._warn(problem)
        return self.recorder.finish()

    def _work_under_locks(self) -> None:
        layout = self.survey.layout
        paths = [
            layout.slug_lock(self.survey.model.slug),
            layout.store_lock,
            *gpu_lock_paths([gpu.uuid for gpu in self.survey.gpus]),
        ]
        with self._locked(paths) as locks:
            self._end_leftovers()
            # Whoever held the lock before us may have built what we came for.
            self.survey = take_survey(self.request, self.environ, self.survey.seen_gpus)
            scratch = layout.scratch
            shutil.rmtree(scratch, ignore_errors=True)  # a dead run's; nobody else works here while we hold the lock
            try:
                self._run_stages(locks, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _locked(self, paths: Sequence[Path]) -> HeldLocks:
        timeout, started = self.request.resolved.spec.timeout_s, time.monotonic()
        try:
            return acquire(paths, self.request.run_id, timeout, self._waiting, self.cancelled)
        finally:
            self.recorder.waited(time.monotonic() - started)

    def _waiting(self, path: Path, holder: Holder | None, waited: float) -> None:
        held = holder.held_for() if holder else waited
        self.emit(
            event(
                "ensure",
                Phase.WAIT_LOCK,
                slug=self.survey.model.slug,
                held_for_s=round(held, 1),
                holder=str(holder or "somebody who has not signed it"),
                message=str(path),
            )
        )

    def _end_leftovers(self) -> None:
        """Ends what an owner left that died together with its guard. Holding the store's lock proves it is stale."""
        stale = leftovers(self.survey.layout)
        if not stale:
            return
        self._warn(f"ended {len(stale)} processes that a dead run had left: {', '.join(str(p.pid) for p in stale)}")
        if alive := end_processes(stale):
            raise HostUnfit(
                f"process {alive[0].pid} of a dead run cannot be ended", error_type=ErrorType.CLEANUP_FAILED
            )

    def _warn(self, message: str) -> None:
        self.recorder.warn(message)
        self.emit(event("ensure", Phase.WARNING, message=message))

    def _run_stages(self, locks: HeldLocks, scratch: Path) -> None:
        """Stages that only compile on the CPU go side by side, the others one after another, and then the proof."""
        for decision in self.survey.plan.decisions:
            if decision.action is not Action.BUILD:
                self._settle(decision)
        building = {each.stage: each for each in self.survey.plan.decisions if each.action is Action.BUILD}
        self._tell_begun(building)
        runs: dict[StageName, StageRun] = {}
        with ThreadPoolExecutor(max_workers=len(StageName)) as pool:
            waiting: dict[Future[StageResult], StageName] = {}
            try:
                for wave in waves(list(building)):
                    self._collect(waiting, keep=wave.beside)
                    runs |= {stage: self._stage_run(building[stage], locks, scratch) for stage in wave.stages}
                    waiting |= {pool.submit(runs[stage].go): stage for stage in wave.stages}
                self._collect(waiting)
            finally:
                self._abandoned.set()  # whatever still runs, because nobody could go on here, ends now
        if StageName.SERVE in runs and (built := runs[StageName.SERVE].built):
            self._adopt(built.elsewhere, built.gemm_shapes)
            self._confirm_moe(built.moe_configs, runs[StageName.SERVE].log)
        self._prove(locks, scratch)

    def _tell_begun(self, stages: Collection[StageName]) -> None:
        if container := self.survey.layout.container_run:
            from rayprep.node import outside

            if problem := outside.tell_begun(container, self.recorder.result, stages):
                self._warn(problem)

    def _stage_run(self, decision: Decision, locks: HeldLocks, scratch: Path) -> StageRun:
        home = _made(scratch / decision.stage.value)
        env = child_env(self.environ, self.survey.layout, home, self.request.invocation)
        survey, warnings = self._survey_for(decision.stage)
        run = StageRun(self.request, survey, decision, env, home, locks, self.emit, self._is_cancelled)
        run.warnings += warnings
        return run

    def _survey_for(self, stage: StageName) -> tuple[Survey, list[str]]:
        """Where no server starts with torch.compile, `serve` warms up what the other flags compile."""
        inductor = self.recorder.result.stages.get(StageName.INDUCTOR)
        if stage is not StageName.SERVE or inductor is None or inductor.error_type is not ErrorType.UNSUPPORTED:
            return self.survey, []
        request = self.survey.request
        flags = without(request.spec.server_args)
        plain = replace(request, spec=request.spec.model_copy(update={"server_args": flags}))
        return replace(self.survey, request=plain), [f"warmed up without {ENABLE}: see the inductor stage"]

    def _is_cancelled(self) -> bool:
        return self._abandoned.is_set() or self.cancelled()

    def _collect(self, waiting: dict[Future[StageResult], StageName], keep: Collection[StageName] = ()) -> None:
        """Records the stages that end, until none runs but those to `keep`. Raises Interrupted when one was."""
        interrupted = False
        while any(stage not in keep for stage in waiting.values()):
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                self.recorder.stage(waiting.pop(future), result)
                interrupted |= result.error_type is ErrorType.INTERRUPTED
                keep = () if interrupted else keep
        if interrupted or self.cancelled():
            raise Interrupted

    def _adopt(self, used: Collection[str], shapes: Sequence[GemmShape]) -> None:
        """What the server used in other stages' caches becomes theirs."""
        known = exact_completions(self.survey)
        for stage, units in adopt(self.survey, self.request.run_id, known, used, shapes).items():
            self.recorder.missed(stage, units)
            self._warn(f"{stage}: the server needed more than was planned: {', '.join(units) or 'new files'}")

    def _prove(self, locks: HeldLocks, scratch: Path) -> None:
        decision = self.survey.plan.verify
        failed = [name for name, each in self.recorder.result.stages.items() if each.status is StageStatus.ERROR]
        if not decision.run or failed:
            self._leave_unproved(f"{failed[0]}_failed" if failed else decision.reason)
            return
        home = _made(scratch / "verify")
        env = child_env(self.environ, self.survey.layout, home, self.request.invocation)
        survey = replace(self.survey, completions=exact_completions(self.survey))
        from rayprep.node.verify import Verify  # and with it what runs a server, which a run with nothing to do spares

        proof = Verify(self.request, survey, env, home, locks, self.emit, self.cancelled)
        self.recorder.verify(proof.go())
        self._adopt(proof.elsewhere, proof.gemm_shapes)
        self._confirm_moe(proof.moe_configs, proof.log)

    def _confirm_moe(self, said: MoeConfigs | None, log: Path) -> None:
        """A server that was ready has said which MoE config it uses."""
        result = self.recorder.result.stages.get(StageName.MOE_TUNE)
        if said is None or result is None:
            return
        judged = confirmed(result, said, self.survey.layout.located(log))
        if judged is None:
            return
        keep_word(self.survey.layout, exact_completions(self.survey).get(StageName.MOE_TUNE), judged)
        if judged.status is StageStatus.ERROR:
            self._say_end(StageName.MOE_TUNE, judged)
        self.recorder.stage(StageName.MOE_TUNE, judged)

    def _settle_all(self) -> None:
        for decision in self.survey.plan.decisions:
            self._settle(decision)
        self._leave_unproved(self.survey.plan.verify.reason)

    def _leave_unproved(self, reason: str) -> None:
        self.emit(event(VERIFY, Phase.END, status="skipped", duration_s=0.0, reason=reason))
        self.recorder.verify(skipped(reason))

    def _settle(self, decision: Decision) -> None:
        """Records a stage that has nothing to run."""
        result = settled_result(decision, self.survey)
        if decision.stage is StageName.MOE_TUNE and decision.action is Action.NOOP:
            result = with_config(result, self.survey)
        if decision.record_skip:
            try:
                record_skip(self.survey, decision, self.request.run_id)
            except OSError as error:
                # Without it the cache reads as invalid, which is no reason to fail what has nothing to do.
                self._warn(f"{decision.stage}: its skip cannot be kept: {error.strerror or error}: {error.filename}")
        self._say_end(decision.stage, result)
        self.recorder.stage(decision.stage, result)

    def _say_end(self, stage: StageName, result: StageResult) -> None:
        self.emit(
            event(
                stage.value,
                Phase.END,
                status=result.status.value,
                duration_s=result.duration_s,
                reason=result.reason,
                error_type=result.error_type,
                message=result.errors[0].message if result.errors else None,
            )
        )

    def _skip_the_rest(self, error: RayprepError) -> None:
        """Stages that were never reached are in the result too, so that a reader finds all of them."""
        for stage in StageName:
            if stage not in self.recorder.result.stages:
                reason = error.error_type.value if error.error_type else "not_reached"
                result = StageResult(ran=False, status=StageStatus.SKIPPED, status_code=0, reason=reason)
                self.recorder.stage(stage, result)


def _made(folder: Path) -> Path:
    """Makes an empty folder. Raises HostUnfit where it cannot be made, or a dead run's could not be removed."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise HostUnfit(
            f"scratch folder {folder}: {error.strerror}", hint="remove it", error_type=os_error_type(error)
        ) from None
    return folder
