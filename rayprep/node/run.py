"""Carries out a request on this host: locks, repairs, runs the stages one after another, records each."""

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.host.environment import child_env
from rayprep.host.layout import Layout, clear_scratch, make_scratch, os_error_type, root_unfit
from rayprep.host.leftovers import leftovers
from rayprep.host.locks import HeldLocks, acquire, gpu_lock_paths
from rayprep.host.owned import raise_refused
from rayprep.host.process import end_marked
from rayprep.model.plan import Action, Decision, is_served_without, prevents_proof, waves
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.node import after_run
from rayprep.node.announcer import Emit, Telling
from rayprep.node.completion_writer import drop_proof
from rayprep.node.proof.proof import Verify
from rayprep.node.request import NodeRequest
from rayprep.node.server_evidence import take_in, tell_set_aside
from rayprep.node.stage_run import StageRun
from rayprep.node.survey import Survey, exact_completions, take_survey
from rayprep.sglang.torch_compile import ENABLE, without
from rayprep.store.completions import rewrite_outdated

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
        self._abandoned = threading.Event()
        self._worked = survey.plan.needs_work
        self.telling = Telling(request, survey, emit)
        self.recorder = self.telling.recorder

    def go(self) -> PrepResult:
        self.telling.begin()
        stopped: RayprepError | None = None
        try:
            if self._worked:
                self._work_under_locks()
            else:
                self.telling.settle(self.survey, self.survey.plan.decisions)
                self.telling.leave_unproved(self.survey.plan.verify.reason)
        except RayprepError as error:
            told = {each.error_type for each in self.recorder.result.errors}
            if not isinstance(error, Interrupted) or ErrorType.INTERRUPTED not in told:
                self.recorder.failed(error)
                stopped = error
            self.telling.skip_the_rest(error)
        return self.telling.end(self._finish(), stopped)

    def _finish(self) -> PrepResult:
        container = self.survey.layout.container_run
        if not self._worked and not container:
            return self.recorder.finish()
        if self._worked:
            after_run.share(self.survey, self.recorder.result)
            self.recorder.probed(after_run.probed(self.survey, self.recorder.result))
        if container and (problem := after_run.tell_ended(container, self.recorder.result)):
            self.telling.warn(problem)
        return self.recorder.finish()

    def _work_under_locks(self) -> None:
        layout = self.survey.layout
        paths = [
            layout.slug_lock(self.survey.model.slug),
            layout.store_lock,
            *gpu_lock_paths([gpu.uuid for gpu in self.survey.gpus]),
        ]
        with self._locked(paths) as locks:
            for warning in locks.warnings:
                self.telling.warn(warning)
            self._end_leftovers()
            rewrite_outdated(layout)
            # Whoever held the lock before us may have built what we came for.
            self.survey = take_survey(self.request, self.environ, self.survey.seen_gpus)
            scratch = layout.scratch
            clear_scratch(layout)  # a dead run's; nobody else works here while we hold the lock
            try:
                self._run_stages(locks, scratch)
            finally:
                clear_scratch(layout)

    def _locked(self, paths: Sequence[Path]) -> HeldLocks:
        timeout, started = self.request.resolved.spec.timeout_s, time.monotonic()
        try:
            return acquire(
                paths, self.request.run_id, timeout, self.telling.waiting, self.cancelled, self.survey.layout.store
            )
        finally:
            self.recorder.waited(time.monotonic() - started)

    def _end_leftovers(self) -> None:
        """Ends what an owner left that died together with its guard. Holding the store's lock proves it is stale."""
        stale = leftovers(self.survey.layout)
        if not stale:
            return
        pids = ", ".join(str(each.pid) for each in stale)
        self.telling.warn(f"ended {len(stale)} processes that a dead run had left: {pids}")
        if alive := end_marked(lambda: leftovers(self.survey.layout)):
            raise HostUnfit(
                f"process {alive[0].pid} of a dead run cannot be ended", error_type=ErrorType.CLEANUP_FAILED
            )

    def _run_stages(self, locks: HeldLocks, scratch: Path) -> None:
        """Stages that only compile on the CPU go side by side, the others one after another, and then the proof."""
        decisions = self.survey.plan.decisions
        self.telling.settle(self.survey, [each for each in decisions if each.action is not Action.BUILD])
        building = {each.stage: each for each in decisions if each.action is Action.BUILD}
        if building:
            self._drop_proof()
        self.telling.begin_stages(self.survey.layout.container_run, building)
        runs: dict[StageName, StageRun] = {}
        try:
            with ThreadPoolExecutor(max_workers=len(StageName)) as pool:
                waiting: dict[Future[StageResult], StageName] = {}
                try:
                    for wave in waves(list(building)):
                        self._collect(waiting, keep=wave.beside)
                        runs |= {stage: self._stage_run(building[stage], locks, scratch) for stage in wave.stages}
                        for stage in wave.stages:
                            runs[stage].beside = tuple(waiting)
                        waiting |= {pool.submit(runs[stage].go): stage for stage in wave.stages}
                    self._collect(waiting)
                finally:
                    self._abandoned.set()  # whatever still runs, because nobody could go on here, ends now
        finally:  # it is so, whatever stopped the run
            tell_set_aside(self.telling, [aside for run in runs.values() for aside in run.set_aside])
        if StageName.SERVE in runs and (built := runs[StageName.SERVE].built):
            take_in(self.survey, self.request.run_id, self.telling, built, runs[StageName.SERVE].log)
        self._prove(locks, scratch)

    def _drop_proof(self) -> None:
        try:
            drop_proof(self.survey)
        except OSError as error:
            raise root_unfit(self.survey.layout.profiles, "profiles", error) from None

    def _stage_run(self, decision: Decision, locks: HeldLocks, scratch: Path) -> StageRun:
        home = _made(self.survey.layout, scratch / decision.stage.value)
        env = child_env(self.environ, self.survey.layout, home, self.request.invocation)
        survey, warnings = self._survey_for(decision.stage)
        run = StageRun(self.request, survey, decision, env, home, locks, self.telling.emit, self._is_cancelled)
        run.warnings += warnings
        return run

    def _survey_for(self, stage: StageName) -> tuple[Survey, list[str]]:
        """Where no server starts with torch.compile, `serve` warms up what the other flags compile."""
        return self._as_served("warmed up") if stage is StageName.SERVE else (self.survey, [])

    def _as_served(self, what: str) -> tuple[Survey, list[str]]:
        """What rayprep's own servers go by, and the warning where that is less than was asked for."""
        inductor = self.recorder.result.stages.get(StageName.INDUCTOR)
        failed = inductor is not None and is_served_without(StageName.INDUCTOR, inductor.error_type)
        if not failed and not self.survey.plan.served_without:
            return self.survey, []
        request = self.survey.request
        plain = request.with_server_args(without(request.spec.server_args))
        return replace(self.survey, request=plain), [f"{what} without {ENABLE}: see the inductor stage"]

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

    def _prove(self, locks: HeldLocks, scratch: Path) -> None:
        decision = self.survey.plan.verify
        command = self.survey.request.spec.server_command
        failed = [
            name
            for name, each in self.recorder.result.stages.items()
            if each.status is StageStatus.ERROR and prevents_proof(name, each.error_type, command)
        ]
        if not decision.run or failed:
            self.telling.leave_unproved(f"{failed[0]}_failed" if failed else decision.reason)
            return
        home = _made(self.survey.layout, scratch / "verify")
        env = child_env(self.environ, self.survey.layout, home, self.request.invocation)
        # A user's own server leaves nothing out.
        survey, warnings = (self.survey, []) if command else self._as_served("proved")
        survey = replace(survey, completions=exact_completions(self.survey))
        proof = Verify(self.request, survey, env, home, locks, self.telling.emit, self.cancelled, tuple(warnings))
        try:
            proved = proof.go()
        finally:
            tell_set_aside(self.telling, proof.set_aside)
        self.recorder.verify(proved)
        take_in(self.survey, self.request.run_id, self.telling, proof, proof.log)


def _made(layout: Layout, folder: Path) -> Path:
    """Makes an empty folder. Raises HostUnfit where it cannot be made, or a dead run's could not be removed."""
    try:
        make_scratch(layout)
        with layout.store.folder(folder.parent) as parent:
            os.mkdir(folder.name, 0o700, dir_fd=parent)
    except OSError as error:
        raise_refused(error)
        raise HostUnfit(
            f"scratch folder {folder}: {error.strerror}", hint="remove it", error_type=os_error_type(error)
        ) from None
    return folder
