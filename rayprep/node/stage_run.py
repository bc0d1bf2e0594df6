"""One stage from headroom to completion. Whatever fails, the marker stays and the error says what to do."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rayprep import __version__
from rayprep.host.completions import read_completions, write_completion
from rayprep.host.entries import Entry, find_places, group_entries, remove_entry
from rayprep.host.layout import os_error_type
from rayprep.host.locks import HeldLocks
from rayprep.host.markers import Marker, remove_marker, write_marker
from rayprep.host.scan import CacheScan, hash_files, scan_cache
from rayprep.model.base import parse_utc, utc_now
from rayprep.model.completion import CheckState, Completion
from rayprep.model.errors import ErrorType, Interrupted, StageError
from rayprep.model.events import Event, Phase, event
from rayprep.model.plan import Decision
from rayprep.model.result import Artifacts, StageResult
from rayprep.model.spec import StageOp
from rayprep.model.stages import STAGES, StageName, StageStatus
from rayprep.node.record import failed_result
from rayprep.node.request import NodeRequest
from rayprep.node.survey import Survey
from rayprep.stages import BY_NAME, BuildContext, Built

HEADROOM_FACTOR = 1.25
"""Free disk asked for, over what the stage is reckoned to write."""


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
        self.env, self.scratch, self.locks, self.emit, self.cancelled = env, scratch, locks, emit, cancelled
        self.stage = BY_NAME[decision.stage]
        self.layout, self.slug = survey.layout, survey.model.slug
        self.log = self.layout.stage_log(request.run_id, decision.stage)
        self.started_at, self.started = utc_now(), time.monotonic()
        self.last_beat = self.started
        self.hint: tuple[str, int | None, int | None] = ("starting", None, None)

    @property
    def elapsed(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def go(self) -> StageResult:
        """The stage's result, `ok` or `error`. Raises Interrupted when the run was cancelled, after saying so."""
        try:
            result = self._build()
        except Interrupted as error:
            self._emit(Phase.END, status="error", error_type=error.error_type, duration_s=self.elapsed)
            raise
        except (StageError, OSError) as error:
            failure = error if isinstance(error, StageError) else _from_os(error)
            result = failed_result(self.decision.stage, failure, ran=True, duration_s=self.elapsed)
        self._emit(
            Phase.END,
            status=result.status.value,
            error_type=result.error_type,
            duration_s=result.duration_s,
            message=result.errors[0].message if result.errors else None,
        )
        return result

    def _settings(self) -> dict[str, object]:
        spec = self.request.resolved.spec
        return {"model": self.slug, "tp": spec.tp, "batch_sizes": spec.batch_sizes, "reason": self.decision.reason}

    def _build(self) -> StageResult:
        before = self._preflight()
        # Before our own marker: until this is done, the aborted run's must go on saying since when it wrote.
        if self._discard():
            before = self._scan()
        self._mark()
        self._emit(Phase.START, settings=self._settings())
        built = self.stage.build(self.survey.request, self.work, self._context())
        after = self._scan()
        completion = self._complete(built, before, after)
        remove_marker(self.layout, self.slug, self.decision.stage)
        return self._ok(built, before, after, completion)

    def _mark(self) -> None:
        marker = Marker(
            owner_pid=os.getpid(),
            started_at=self.started_at,
            run_id=self.request.run_id,
            host=socket.gethostname(),
        )
        write_marker(self.layout, self.slug, self.decision.stage, marker)

    def _scan(self) -> list[CacheScan]:
        return [scan_cache(self.layout.profiles, cache) for cache in STAGES[self.decision.stage].caches]

    def _preflight(self) -> list[CacheScan]:
        """Folders there and ours to write, disk enough."""
        scans = self._scan()
        for scan in scans:
            if scan.obstacle:
                raise StageError(ErrorType.PERMISSIONS_UNEXPECTED, scan.obstacle, hint="move it out of the way")
            folder = self.layout.cache(scan.cache)
            folder.mkdir(exist_ok=True)
            _refuse_unwritable(folder)
            self._headroom(folder)
        return scans

    def _headroom(self, folder: Path) -> None:
        required, free = int(self.work.required_bytes * HEADROOM_FACTOR), shutil.disk_usage(folder).free
        if free < required:
            raise StageError(
                ErrorType.INSUFFICIENT_DISK,
                f"{folder} has {free >> 20} MiB free, {required >> 20} MiB are needed "
                f"({self.work.estimate}, times {HEADROOM_FACTOR})",
                payload={"required_bytes": required, "free_bytes": free},
            )

    def _discard(self) -> bool:
        """Removes what must not be built upon. True where something was removed.

        That is: what a rebuild is to replace, entries with damaged files, and whatever an aborted run wrote. The
        latter two could be half written, and a library would load them as they are.
        """
        doomed = set(group_entries(self.decision.check.damaged))
        own = self.survey.completions.get(self.decision.stage)
        held_by_others = set(group_entries(self._others_files(own)))
        if self.request.resolved.spec.op(self.decision.stage) is StageOp.REBUILD and own:
            doomed |= set(group_entries(own.artifacts)) - held_by_others
        if marker := self.survey.inventory.markers.get((self.slug, self.decision.stage)):
            kept = held_by_others | set(group_entries(own.artifacts if own else ()))
            doomed |= self._written_since(marker.started_at) - kept
        for entry, places in find_places(self.layout.profiles, doomed).items():
            remove_entry(self.layout, entry, places)
        if doomed:
            self._emit(Phase.PROGRESS, hint=f"removed {len(doomed)} entries that could not be trusted", elapsed_s=0.0)
        return bool(doomed)

    def _others_files(self, own: Completion | None) -> set[str]:
        listed: set[str] = set()
        for stage in StageName:
            for each in read_completions(self.layout, stage)[0]:
                if own is None or (each.stage, each.key) != (own.stage, own.key):
                    listed |= each.artifacts.keys()
        return listed

    def _written_since(self, moment: str | None) -> set[Entry]:
        """Entries with a file as new as the aborted run; all entries where its time is not known."""
        since = parse_utc(moment).timestamp() if moment else float("-inf")
        recent = [
            path
            for scan in self._scan()
            for path in scan.files
            if (self.layout.profiles / path).lstat().st_mtime >= since
        ]
        return set(group_entries(recent))

    def _context(self) -> BuildContext:
        return BuildContext(
            layout=self.layout,
            log=self.log,
            scratch=self.scratch,
            env=self.env,
            lock_descriptors=self.locks.descriptors,
            deadline=self.started + self.request.resolved.spec.timeout_s,
            cancelled=self.cancelled,
            report=self._report,
            tick=self._tick,
        )

    def _report(self, hint: str, done: int | None, total: int | None) -> None:
        self.hint = (hint, done, total)
        self._beat()

    def _tick(self) -> None:
        if time.monotonic() - self.last_beat >= self.request.resolved.spec.heartbeat_s:
            self._beat()

    def _beat(self) -> None:
        self.last_beat = time.monotonic()
        hint, done, total = self.hint
        self._emit(Phase.PROGRESS, elapsed_s=self.elapsed, hint=hint, done=done, total=total)

    def _emit(self, phase: Phase, **fields: object) -> None:
        self.emit(event(self.decision.stage.value, phase, **fields))

    def _complete(self, built: Built, before: list[CacheScan], after: list[CacheScan]) -> Completion:
        """Hashes what the stage made and writes its completion, the last thing before the marker goes."""
        old, now = _merged(before), _merged(after)
        own = self.survey.completions.get(self.decision.stage)
        rebuilt = self.request.resolved.spec.op(self.decision.stage) is StageOp.REBUILD
        widened = own if own and not rebuilt and self.decision.check.state is CheckState.NOT_COVERED else None
        files = {path for path, size in now.items() if old.get(path) != size} | (built.used & now.keys())
        files |= widened.artifacts.keys() & now.keys() if widened else set()
        hashes = hash_files(self.layout.profiles, sorted(files))
        if not hashes:
            raise StageError(ErrorType.VERIFY_FAILED, "the build left no file behind")
        completion = new_completion(self.survey, self.decision, self.request.run_id, self.started_at).model_copy(
            update={
                "units": tuple(sorted({*built.units, *(widened.units if widened else ())})),
                "artifacts": {path: (now[path], digest) for path, digest in hashes.items()},
                "duration_s": self.elapsed,
                "finished_at": utc_now(),
            }
        )
        write_completion(self.layout, completion)
        return completion

    def _ok(self, built: Built, before: list[CacheScan], after: list[CacheScan], completion: Completion) -> StageResult:
        path = self.layout.completion(self.decision.stage, completion.key)
        artifacts: Artifacts = self.stage.describe(self.layout, after).model_copy(
            update={
                "log_file": self.layout.located(self.log),
                "units": completion.units,
                "built": built.compiled,
                "disk_delta_bytes": sum(s.size_bytes for s in after) - sum(s.size_bytes for s in before),
                "files_delta": len(_merged(after)) - len(_merged(before)),
                "completion": self.layout.located(path),
            }
        )
        warnings = (*built.warnings, *(warning for scan in after for warning in scan.warnings))
        return StageResult(
            ran=True,
            status=StageStatus.OK,
            status_code=0,
            duration_s=self.elapsed,
            artifacts=artifacts,
            env=built.env,
            cleanup=built.cleanup,
            warnings=warnings,
        )


def new_completion(survey: Survey, decision: Decision, run_id: str, started_at: str) -> Completion:
    """A completion with no files and no coverage yet."""
    return Completion(
        stage=decision.stage,
        key=decision.key,
        identity=survey.identity,
        model_source=str(survey.model.source),
        signature=survey.signature,
        started_at=started_at,
        finished_at=utc_now(),
        duration_s=0.0,
        run_id=run_id,
        rayprep_version=__version__,
    )


def record_skip(survey: Survey, decision: Decision, run_id: str) -> None:
    """Keeps that there is rightly nothing to build here, so that the cache does not read as invalid for ever."""
    known = survey.completions.get(decision.stage)
    if known is not None and known.outcome == "skipped":
        return
    completion = new_completion(survey, decision, run_id, utc_now())
    write_completion(survey.layout, completion.model_copy(update={"outcome": "skipped", "reason": decision.reason}))


def _merged(scans: list[CacheScan]) -> dict[str, int]:
    return {path: size for scan in scans for path, size in scan.files.items()}


def _refuse_unwritable(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        if not os.access(place, os.W_OK | os.X_OK | os.R_OK):
            raise StageError(
                ErrorType.PERMISSIONS_UNEXPECTED, f"folder {place} cannot be written by this user (uid {os.getuid()})"
            )


def _from_os(error: OSError) -> StageError:
    return StageError(os_error_type(error), f"{error.filename or 'the file system'}: {error.strerror or error}")
