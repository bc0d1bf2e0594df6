"""One stage from its marker to its completion. Whatever fails, the marker stays and the error says what to do."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

from rayprep.base.errors import ErrorType, Interrupted, RayprepError, StageError, Unsupported
from rayprep.base.records import utc_now
from rayprep.host.layout import os_error_type
from rayprep.host.locks import HeldLocks
from rayprep.model.completion import Completion
from rayprep.model.events import Event, Phase, event
from rayprep.model.plan import Decision
from rayprep.model.process_end import Cleanup
from rayprep.model.result import Artifacts, Headroom, StageResult
from rayprep.model.spec import StageOp
from rayprep.model.stages import STAGES, StageName, StageStatus
from rayprep.node.announcer import end_event
from rayprep.node.completion_writer import complete, deltas, new_completion, record_unsupported
from rayprep.node.moe_state import found_configs
from rayprep.node.repair import repair
from rayprep.node.request import NodeRequest
from rayprep.node.result_writer import failed_result
from rayprep.node.survey import Survey, exact_completions
from rayprep.sglang.moe_config_lines import looked_for
from rayprep.stages.moe_tune.second_try import SecondTry, SetAside
from rayprep.stages.protocol import BuildContext, Built
from rayprep.stages.table import BY_NAME
from rayprep.store.markers import remove_marker, standing_since, write_marker
from rayprep.store.scan import CacheScan, scan_cache

HEADROOM_FACTOR = 1.25
"""Free disk asked for, over what the stage is reckoned to write."""
_TICK_S = 0.2


class StageRun:
    """Runs one stage that the plan says to build."""

    def __init__(
        self,
        request: NodeRequest,
        survey: Survey,
        decision: Decision,
        env: Mapping[str, str],
        scratch: Path,
        locks: HeldLocks,
        emit: Callable[[Event], None],
        cancelled: Callable[[], bool],
    ) -> None:
        assert decision.work is not None
        self.request, self.survey, self.decision, self.work = request, survey, decision, decision.work
        self.env, self.scratch, self.locks, self.cancelled = env, scratch, locks, cancelled
        self.name, self.stage = decision.stage, BY_NAME[decision.stage]
        self.layout, self.slug = survey.layout, survey.model.slug
        self.rebuild = request.resolved.spec.op(decision.stage) is StageOp.REBUILD
        self.marks_serve = self.work.by_sglang and not self.layout.marker(self.slug, StageName.SERVE).exists()
        self.log = self.layout.stage_log(request.run_id, decision.stage)
        self._emit, self.pulse = emit, _Pulse(decision, request.resolved.spec.heartbeat_s, emit)
        self.started_at = utc_now()
        self.headroom: Headroom | None = None
        self.cleanup: Cleanup | None = None
        self.warnings: list[str] = []
        self.set_aside: tuple[SetAside, ...] = ()
        """What its server died of, and then did without."""
        self.built: Built | None = None
        """What came of the build, where it succeeded."""
        self.beside: Collection[Future[StageResult]] = ()
        """The stages that were building when this one started."""

    def go(self) -> StageResult:
        """The stage's result, `ok` or `error`; an interrupt is an error, too."""
        before: list[CacheScan] = []
        try:
            since = self._mark()
            self.pulse.emit(Phase.START, settings=self._settings())
            before = self._scan()
            self._preflight(before)
            result = self._build(before, since)
        except Exception as error:  # noqa: BLE001 - whatever it is, the following stages still run
            failed = failed_result(self.name, as_rayprep_error(error), ran=True, duration_s=self.pulse.elapsed)
            result = failed.model_copy(update={"artifacts": self._remains(before)})
            if isinstance(error, Unsupported):
                self._remember(error)
        result = result.model_copy(
            update={
                "cleanup": self.cleanup,
                "headroom": self.headroom,
                "warnings": (*result.warnings, *self.warnings),
            }
        )
        self._emit(end_event(self.name, result))
        return result

    def _remember(self, error: Unsupported) -> None:
        try:
            record_unsupported(self.survey, self.decision, self.request.run_id, error.message)
        except OSError as problem:
            self.warnings.append(f"that it is unsupported cannot be kept: {problem.strerror}: {problem.filename}")

    def _settings(self) -> dict[str, object]:
        spec = self.request.resolved.spec
        sizes = self.work.batch_sizes or spec.batch_sizes
        return {"model": self.slug, "tp": spec.tp, "batch_sizes": sizes, "reason": self.decision.reason}

    def _mark(self) -> float | None:
        """Writes the marker. Returns since when an aborted run may have written, which the new marker keeps."""
        since = standing_since(self.layout, self.name)
        self._write_marker(self.name, since)
        if self.marks_serve:
            self._write_marker(StageName.SERVE, standing_since(self.layout, StageName.SERVE))
        return since

    def _write_marker(self, stage: StageName, since: float | None) -> None:
        write_marker(self.layout, self.slug, stage, self.request.marker(self.started_at), since)

    def _unmark(self) -> None:
        remove_marker(self.layout, self.slug, self.name)
        if self.marks_serve:
            remove_marker(self.layout, self.slug, StageName.SERVE)

    def _preflight(self, scans: list[CacheScan]) -> None:
        """Folders plain and ours to write, disk enough."""
        for scan in scans:
            if scan.obstacle or scan.links:
                problem = scan.obstacle or f"{self.layout.cache(scan.cache)} holds {scan.links} links"
                raise StageError(
                    ErrorType.PERMISSIONS_UNEXPECTED, problem, hint="move them away: nothing is built through a link"
                )
            folder = self.layout.cache(scan.cache)
            self.layout.store.make(folder)
            _refuse_unwritable(folder)
        self._check_headroom(self.layout.cache(scans[0].cache))

    def _check_headroom(self, folder: Path) -> None:
        required, free = int(self.work.required_bytes * HEADROOM_FACTOR), shutil.disk_usage(folder).free
        estimate = f"{self.work.estimate}, times {HEADROOM_FACTOR}"
        self.headroom = Headroom(required_bytes=required, free_bytes=free, estimate=estimate)
        if free < required:
            raise StageError(
                ErrorType.INSUFFICIENT_DISK,
                f"{folder} has {free >> 20} MiB free, {required >> 20} MiB are needed ({estimate})",
                payload={"required_bytes": required, "free_bytes": free},
            )

    def _build(self, before: list[CacheScan], since: float | None) -> StageResult:
        own = self._repair(before, since)
        built = self.built = self._first_or_second()
        if own and self.set_aside:
            own = exact_completions(self.survey).get(self.name)
        after = self._scan()
        empty = new_completion(self.survey, self.decision, self.request.run_id, self.started_at)
        told = built.artifacts or Artifacts()
        of_moe = {"verified_in_log": told.verified_in_log, "verify_log": told.verify_log, "tuning": told.tuning}
        configs = found_configs(self.layout, looked_for(built.moe_configs)) if self.name is StageName.SERVE else {}
        empty = empty.model_copy(update={"duration_s": self.pulse.elapsed, "moe_configs": configs, **of_moe})
        if self.cancelled():  # a holder that was frozen past its lease learns it here at the latest
            raise Interrupted
        completion = complete(self.survey, empty, built, after, own)
        self._unmark()
        return self._ok(built, before, after, completion)

    def _first_or_second(self) -> Built:
        """Builds; and once more, where a server died, without what it may have died of."""

        def build() -> Built:
            return self.stage.build(self.survey.request, self.work, self._context())

        if self.name is StageName.MOE_TUNE:  # which would only tune again
            return build()
        say = partial(self.pulse.report, done=None, total=None)
        built, self.set_aside = SecondTry(self.survey.request, self.layout, build, say, alone=self._alone).go()
        self.warnings += (aside.message for aside in self.set_aside)
        return built

    def _alone(self) -> None:
        while wait(self.beside, timeout=_TICK_S).not_done:
            self.pulse.tick()

    def _repair(self, scans: list[CacheScan], since: float | None) -> Completion | None:
        """Takes away what cannot be built upon. Returns the stage's own completion if all of it is still good."""
        own = self.survey.completions.get(self.name)
        if own and own.outcome == "unsupported":  # whatever comes of this try, it is not known any more
            self.layout.store.unlink(self.layout.completion(self.name, own.key), missing_ok=True)
        own = own if own and own.outcome == "built" else None
        unsound = partial(self.stage.unsound, self.layout)
        done = repair(self.layout, self.name, own, scans, since, unsound, rebuild=self.rebuild)
        if done.removed:
            hint = f"removed {len(done.removed)} entries that are not to be built upon"
            self.pulse.emit(Phase.PROGRESS, hint=hint, elapsed_s=self.pulse.elapsed)
        if done.shared:
            self.warnings.append(f"{len(done.shared)} entries are not built anew, since other completions list them")
        there = {path for scan in self._scan() for path in scan.files}
        return own if own and not self.rebuild and own.artifacts.keys() <= there else None

    def _context(self) -> BuildContext:
        return BuildContext(
            layout=self.layout,
            log=self.log,
            scratch=self.scratch,
            env=self.env,
            gpus=self.survey.slices[0],
            lock_descriptors=self.locks.descriptors,
            deadline=self.pulse.started + self.request.resolved.spec.timeout_s,
            cancelled=self.cancelled,
            report=self.pulse.report,
            tick=self.pulse.tick,
            ended=self._ended,
            host_gpus=self.survey.gpus,
            alone=self._alone,
        )

    def _ended(self, cleanup: Cleanup) -> None:
        """Keeps the worst end of the stage's processes."""
        if self.cleanup is None or self.cleanup.killed:
            self.cleanup = cleanup

    def _scan(self) -> list[CacheScan]:
        return [scan_cache(self.layout.profiles, cache) for cache in STAGES[self.name].caches]

    def _remains(self, before: list[CacheScan]) -> Artifacts:
        """What a failed stage still has to show: its log, and what it left in the caches."""
        after = before
        with contextlib.suppress(OSError):
            after = self._scan()
        log = self.layout.located(self.log) if self.log.exists() else None
        return deltas(before, after).model_copy(update={"log_file": log})

    def _ok(self, built: Built, before: list[CacheScan], after: list[CacheScan], completion: Completion) -> StageResult:
        path = self.layout.completion(self.name, completion.key)
        change = deltas(before, after)
        artifacts = (built.artifacts or self.stage.describe(self.layout, after)).model_copy(
            update={
                "log_file": self.layout.located(self.log),
                "units": completion.units,
                "built": built.compiled,
                "disk_delta_bytes": change.disk_delta_bytes,
                "files_delta": change.files_delta,
                "completion": self.layout.located(path),
            }
        )
        return StageResult(
            ran=True,
            status=StageStatus.OK,
            status_code=0,
            duration_s=self.pulse.elapsed,
            artifacts=artifacts,
            env=built.env,
            warmup_pid=built.server.warmup_pid if built.server else None,
            server=built.server,
            verified_in_log=artifacts.verified_in_log,
            warnings=(*built.warnings, *(warning for scan in after for warning in scan.warnings)),
        )


class _Pulse:
    """The stage's events: hints as they come, and the last of them again at the heartbeat."""

    def __init__(self, decision: Decision, heartbeat_s: float, emit: Callable[[Event], None]) -> None:
        self.started = self._last = time.monotonic()
        self._name, self._heartbeat_s, self._emit = decision.stage.value, heartbeat_s, emit
        self._hint: tuple[str, int | None, int | None] = ("starting", None, None)

    @property
    def elapsed(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def report(self, hint: str, done: int | None, total: int | None) -> None:
        self._hint = (hint, done, total)
        self._beat()

    def tick(self) -> None:
        if time.monotonic() - self._last >= self._heartbeat_s:
            self._beat()

    def _beat(self) -> None:
        self._last = time.monotonic()
        hint, done, total = self._hint
        self.emit(Phase.PROGRESS, elapsed_s=self.elapsed, hint=hint, done=done, total=total)

    def emit(self, phase: Phase, **fields: object) -> None:
        self._emit(event(self._name, phase, **fields))


def _refuse_unwritable(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        if not os.access(place, os.W_OK | os.X_OK | os.R_OK):
            raise StageError(
                ErrorType.PERMISSIONS_UNEXPECTED, f"folder {place} cannot be written by this user (uid {os.getuid()})"
            )


def as_rayprep_error(error: Exception) -> RayprepError:
    """Whatever stopped a stage, as the one line that its result shows."""
    if isinstance(error, RayprepError):
        return error
    if isinstance(error, OSError):
        return StageError(os_error_type(error), f"{error.filename or 'the file system'}: {error.strerror or error}")
    return StageError(ErrorType.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
