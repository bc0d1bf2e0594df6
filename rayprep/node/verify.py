"""The proof on a real server that nothing is left to compile: it is started, asked for everything, and looked after."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayprep.host.cache_watch import CacheUse, CacheWatch
from rayprep.host.completions import write_completion
from rayprep.host.locks import HeldLocks
from rayprep.host.markers import Marker, remove_marker, standing_since, write_marker
from rayprep.host.scan import hash_files
from rayprep.host.server import Server, Watch
from rayprep.model.base import utc_now
from rayprep.model.caches import CacheName
from rayprep.model.errors import ErrorType, Interrupted, RayprepError, StageError
from rayprep.model.events import Event, Phase, event
from rayprep.model.gemm import GemmShape
from rayprep.model.secrets import redacted_command
from rayprep.model.stages import StageName
from rayprep.model.verification import (
    NAMED,
    VERIFY,
    NewFile,
    Verification,
    VerifyResult,
    new_file,
    new_files,
    shortfall,
)
from rayprep.node.repair import repair
from rayprep.node.request import NodeRequest
from rayprep.node.stage_run import as_rayprep_error
from rayprep.node.survey import Survey
from rayprep.stages.warmup_server import implied_command, open_own_server, open_server, rounds_for

_KEPT_MEMORY = "the GPU's memory was not back to where it was when the server had ended"


@dataclass
class Verify:
    """One proof, for the holder of the store's lock."""

    request: NodeRequest
    survey: Survey
    env: Mapping[str, str]
    """With a HOME that nothing has used yet."""
    scratch: Path
    locks: HeldLocks
    emit: Callable[[Event], None]
    cancelled: Callable[[], bool]

    def __post_init__(self) -> None:
        self._started = self._last_beat = time.monotonic()
        self._log = self.survey.layout.run(self.request.run_id) / "verify.log"
        served = self.survey.completions.get(StageName.SERVE)
        remembered = served.server_command if served else ()
        self._own_command = self.survey.request.spec.server_command or remembered
        completions = self.survey.completions.values()
        self._listed = {path: digest for each in completions for path, (_, digest) in each.artifacts.items()}
        self.elsewhere: frozenset[str] = frozenset()
        self.gemm_shapes: tuple[GemmShape, ...] = ()
        """What a server that answered everything has used, and named in its log."""
        self._command: tuple[str, ...] = self._own_command

    def go(self) -> VerifyResult:
        """Runs it, keeps a proof in the completion of `serve`, and takes that completion away where it failed.

        Raises:
            Interrupted: the run was cancelled.
        """
        command = " ".join(redacted_command(self._own_command)) or "as requested"
        self.emit(event(VERIFY, Phase.START, settings={"command": command}))
        try:
            result = self._look() if self._listed else self._failed(_unprepared())
            self._keep(result)
        except Interrupted:
            raise
        except (RayprepError, OSError) as error:
            result = self._failed(as_rayprep_error(error))
        self._say(result)
        return result

    def _look(self) -> VerifyResult:
        layout = self.survey.layout
        had_stood = self._mark()
        caches = CacheWatch(layout, CacheName)
        missing = tuple(new_file(path) for path in sorted(self._listed) if not (layout.profiles / path).exists())
        server = self._server()
        failure: RayprepError | None = None
        try:
            with server:
                server.start()
                server.send(rounds_for(self.survey.request, server.reader.args))
        except Interrupted:
            raise
        except RayprepError as error:
            failure = error
        use = caches.look()
        if failure is None:  # what a server left that died may be half written
            self.elsewhere, self.gemm_shapes = use.within(tuple(CacheName)), tuple(server.reader.gemm_shapes)
        if not had_stood and (failure is None or not server.attempts):
            remove_marker(layout, self.survey.model.slug, StageName.SERVE)
        return self._judge(server, use, missing, failure)

    def _mark(self) -> bool:
        """What a server compiles that is killed may be half written, as with the stage itself.

        Returns whether an aborted run's marker stood. It stays, with its time: a proof repairs nothing.
        """
        layout, slug = self.survey.layout, self.survey.model.slug
        had_stood, since = layout.marker(slug, StageName.SERVE).exists(), standing_since(layout, StageName.SERVE)
        marker = Marker(
            owner_pid=os.getpid(),
            started_at=utc_now(),
            run_id=self.request.run_id,
            invocation=self.request.invocation,
            host=socket.gethostname(),
        )
        write_marker(layout, slug, StageName.SERVE, marker, since)
        return had_stood

    def _server(self) -> Server:
        spec, gpus = self.survey.request.spec, self.survey.gpus
        deadline = self._started + spec.timeout_s
        watch = Watch(deadline, self.cancelled, self._tick, self._report)
        env = {**self.env, "SGLANG_CRASH_ON_JIT_COMPILE": "1"}
        locks = self.locks.descriptors
        if self._own_command:
            return open_own_server(self._own_command, env, self._log, watch, locks, gpus)
        model_folder = self.scratch.with_name("verify-model")
        model_folder.mkdir()
        implied = implied_command(self.survey.request, model_folder)
        served = self.survey.completions.get(StageName.SERVE)
        if served and served.mem_fraction:  # with another, other kernels may run: CUDA graphs take memory
            spec = spec.model_copy(update={"mem_fraction": min(spec.mem_fraction, served.mem_fraction)})
        self._command = tuple(implied(spec.warmup_port, spec.mem_fraction))
        return open_server(spec, implied, env, self._log, watch, locks, gpus[: spec.tp])

    def _judge(
        self, server: Server, use: CacheUse, missing: tuple[NewFile, ...], failure: RayprepError | None
    ) -> VerifyResult:
        new = new_files([*use.new, *self._rewritten(use)], _files_below(self.scratch))
        events = tuple(server.reader.jit_events)
        found = VerifyResult(
            ran=True,
            status="ok",
            new_files=len(new),
            jit_events=len(events),
            ready_s=round(server.ready_s, 3) if server.ready_s is not None else None,
            duration_s=round(time.monotonic() - self._started, 3),
            command=redacted_command(server.command or self._command),
            port=server.port,
            warmup_pid=server.pid,
            new=new[:NAMED],
            missing=missing[:NAMED],
            unread=() if failure else self._unread(use),
            events=events[:NAMED],
            log_file=self.survey.layout.located(self._log),
            warnings=(_KEPT_MEMORY,) if server.memory_returned is False else (),
            cleanup=server.cleanup,
        )
        short = shortfall(found)
        if not short and failure is None:
            return found
        message = "; ".join(part for part in (failure.line if failure else "", short) if part)
        kind = ErrorType.VERIFY_FAILED if short or failure is None else failure.error_type
        return found.model_copy(update={"status": "error", "error_type": kind, "message": message})

    def _rewritten(self, use: CacheUse) -> list[str]:
        """What was compiled again in place: listed, written again, and not what it was."""
        again = [path for path in use.rewritten if path in self._listed]
        now = hash_files(self.survey.layout.profiles, again)
        return [path for path in again if now.get(path) != self._listed[path]]

    def _unread(self, use: CacheUse) -> tuple[str, ...]:
        """A server that was led elsewhere compiles there, and leaves nothing new here."""
        if not use.tells_reads:
            return ()
        listed, read = ({path.partition("/")[0] for path in paths} for paths in (self._listed, use.read))
        return tuple(sorted(listed - read - {CacheName.OTHERS.value, CacheName.MOE_CONFIGS.value}))

    def _failed(self, error: RayprepError) -> VerifyResult:
        return VerifyResult(
            ran=True,
            status="error",
            duration_s=round(time.monotonic() - self._started, 3),
            command=redacted_command(self._command),
            error_type=error.error_type or ErrorType.VERIFY_FAILED,
            message=error.line,
        )

    def _keep(self, result: VerifyResult) -> None:
        """A proof that failed takes the completion of `serve` away: the next run warms up again, and looks again.

        What that completion knows to be damaged goes first, for nobody would know it after. A server may not start on
        it: SGLang dies of a Triton entry whose cubin is gone (`KeyError: "Unknown key: 'cubin'"`).
        """
        served = self.survey.completions.get(StageName.SERVE)
        if served is None or served.outcome != "built":
            return
        if result.status == "ok":
            proof = Verification(verified_at=utc_now(), command=result.command, ready_s=result.ready_s or 0.0)
            kept = {"verification": proof, "server_command": redacted_command(self._own_command)}
            write_completion(self.survey.layout, served.model_copy(update=kept))
        elif result.error_type is ErrorType.VERIFY_FAILED:
            layout = self.survey.layout
            repair(layout, StageName.SERVE, served, (), None, lambda _: (), rebuild=False)
            layout.completion(StageName.SERVE, served.key).unlink(missing_ok=True)

    def _say(self, result: VerifyResult) -> None:
        self.emit(
            event(
                VERIFY,
                Phase.END,
                status=result.status,
                error_type=result.error_type,
                duration_s=result.duration_s,
                message=result.message or f"{result.new_files} new files, {result.jit_events} compile events",
            )
        )

    def _report(self, hint: str, done: int | None, total: int | None) -> None:
        self._last_beat = time.monotonic()
        elapsed = round(self._last_beat - self._started, 3)
        self.emit(event(VERIFY, Phase.PROGRESS, elapsed_s=elapsed, hint=hint, done=done, total=total))

    def _tick(self) -> None:
        if time.monotonic() - self._last_beat >= self.survey.request.spec.heartbeat_s:
            self._report("running", None, None)


def _unprepared() -> StageError:
    return StageError(
        ErrorType.VERIFY_FAILED,
        "nothing is prepared for this model, layout and flags",
        hint="run rayprep ensure with the same flags first",
    )


def _files_below(folder: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118 - one path of many, and Path is slow
        for place, _, names in os.walk(folder)
        for name in names
    ]
