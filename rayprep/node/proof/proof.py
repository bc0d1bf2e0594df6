"""The proof on real servers that nothing is left to compile: started, asked for everything, and looked after."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rayprep.base.errors import ErrorType, Interrupted, RayprepError, StageError
from rayprep.base.records import utc_now
from rayprep.base.secrets import redacted_command
from rayprep.host.locks import HeldLocks
from rayprep.model.caches import CacheName
from rayprep.model.events import Event, Phase, event
from rayprep.model.proof import VERIFY, NewFile, Verification, VerifyResult, new_file
from rayprep.model.stages import STAGES, StageName
from rayprep.node.adopt import widened
from rayprep.node.moe_state import found_configs
from rayprep.node.proof.servers import ProofServer, ProofServers, run_at_once
from rayprep.node.proof.verdict import judge
from rayprep.node.repair import repair
from rayprep.node.request import NodeRequest
from rayprep.node.stage_run import as_rayprep_error
from rayprep.node.survey import Survey, exact_completions
from rayprep.server.server import Watch
from rayprep.sglang.command import proof_mem_fraction
from rayprep.sglang.gemm_shapes import GemmShape
from rayprep.sglang.moe_config_lines import MoeConfigs, looked_for
from rayprep.stages.moe_tune.second_try import SecondTry, SetAside
from rayprep.stages.warmup_server import rounds_for
from rayprep.store.cache_watch import CacheUse, CacheWatch
from rayprep.store.completions import write_completion
from rayprep.store.markers import remove_marker, standing_since, write_marker


class _Outcome(NamedTuple):
    proofs: list[ProofServer]
    use: CacheUse
    missing: tuple[NewFile, ...]
    """What was listed and had gone before they started."""


@dataclass
class Verify:
    """One proof, for the holder of the store's lock."""

    request: NodeRequest
    survey: Survey
    env: Mapping[str, str]
    scratch: Path
    """An empty folder, for the servers' HOMEs."""
    locks: HeldLocks
    emit: Callable[[Event], None]
    cancelled: Callable[[], bool]
    warnings: tuple[str, ...] = ()
    """What is to be known of the servers beforehand."""

    def __post_init__(self) -> None:
        self._started = self._last_beat = time.monotonic()
        self.log = self.survey.layout.run(self.request.run_id) / "verify.log"
        served = self.survey.completions.get(StageName.SERVE)
        self._slices = self.survey.slices
        remembered = served.server_command if served and len(self._slices) == 1 else ()
        self._own_command = self.survey.request.spec.server_command or remembered
        self.set_aside: tuple[SetAside, ...] = ()
        """What its servers died of, and then did without."""
        self._tries = 0
        self.elsewhere: frozenset[str] = frozenset()
        self.gemm_shapes: tuple[GemmShape, ...] = ()
        self.moe_configs: MoeConfigs | None = None
        """What a server that answered everything has used, and named in its log."""
        self._command: tuple[str, ...] = self._own_command

    @property
    def _listed(self) -> dict[str, str]:
        """The artifacts of the request's completions, path below the profiles root -> `sha256:...`."""
        completions = self.survey.completions.values()
        return {path: digest for listing in completions for path, (_, digest) in listing.artifacts.items()}

    @property
    def _elapsed(self) -> float:
        return round(time.monotonic() - self._started, 3)

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
        proofs, use, missing = self._prove()
        if not any(each.failure for each in proofs):  # what a server left that died may be half written
            shapes = (shape for each in proofs for shape in each.server.reader.gemm_shapes)
            self.elsewhere, self.gemm_shapes = use.within(tuple(CacheName)), tuple(dict.fromkeys(shapes))
            self.moe_configs = proofs[0].server.reader.moe_configs
        if not had_stood and all(each.failure is None or not each.server.attempts for each in proofs):
            remove_marker(layout, self.survey.model.slug, StageName.SERVE)
        found = judge(layout, self._listed, proofs, use, missing)
        return found.model_copy(
            update={
                "duration_s": self._elapsed,
                "command": found.command or redacted_command(self._command),
                "warnings": tuple(dict.fromkeys([*self.warnings, *found.warnings])),
            }
        )

    def _prove(self) -> _Outcome:
        """The servers, which have ended, and what they did.

        Where one died of what is ours, they are started without it; and then once more, for what those had to compile
        in its place is no sign of what is left.
        """
        first: list[_Outcome] = []

        def run() -> _Outcome:
            outcome = self._run_servers()
            first.append(outcome)
            for proof in outcome.proofs:
                if isinstance(proof.failure, StageError):
                    raise proof.failure
            return outcome

        say = partial(self._report, done=None, total=None)
        trying = SecondTry(self.survey.request, self.survey.layout, run, say)
        try:
            outcome, self.set_aside = trying.go()
        except StageError:
            return first[0]
        if not self.set_aside:
            return outcome
        self._take_over(outcome)
        return self._run_servers()

    def _run_servers(self) -> _Outcome:
        layout = self.survey.layout
        caches = CacheWatch(layout, CacheName)
        missing = tuple(new_file(path) for path in sorted(self._listed) if not (layout.profiles / path).exists())
        proofs = self._servers()
        run_at_once(proofs, lambda server: rounds_for(self.survey.request, server.reader.args))
        return _Outcome(proofs, caches.look(), missing)

    def _take_over(self, outcome: _Outcome) -> None:
        """What a server used that did without something of ours is what `serve` answers for now."""
        survey = self.survey
        served = exact_completions(survey).get(StageName.SERVE)
        if served is not None:
            own = {cache.value for cache in STAGES[StageName.SERVE].caches}
            used = {path for path in outcome.use.read if path.partition("/")[0] in own} - served.artifacts.keys()
            looked = looked_for(outcome.proofs[0].server.reader.moe_configs)
            served = served.model_copy(update={"moe_configs": found_configs(survey.layout, looked)})
            write_completion(survey.layout, widened(survey.layout, served, used))
        self.survey = replace(survey, completions=exact_completions(survey))

    def _mark(self) -> bool:
        """What a server compiles that is killed may be half written, as with the stage itself.

        Returns whether an aborted run's marker stood. It stays, with its time: a proof repairs nothing.
        """
        layout, slug = self.survey.layout, self.survey.model.slug
        had_stood, since = layout.marker(slug, StageName.SERVE).exists(), standing_since(layout, StageName.SERVE)
        write_marker(layout, slug, StageName.SERVE, self.request.marker(utc_now()), since)
        return had_stood

    def _servers(self) -> list[ProofServer]:
        self._tries += 1
        home = self.scratch / str(self._tries)
        home.mkdir()
        making = ProofServers(self.survey, self.env, home / "verify", self.log, self.locks.descriptors, self._watch)
        if self._own_command:
            return [making.own(self._own_command)]
        spec, implied = self.survey.request.spec, making.implied()
        served = self.survey.completions.get(StageName.SERVE)
        insisted = self.request.verify_only and self.request.resolved.sources["mem_fraction"] != "default"
        fraction = proof_mem_fraction(spec.mem_fraction, served.mem_fraction if served else None, insisted=insisted)
        spec = spec.model_copy(update={"mem_fraction": fraction})
        self._command = tuple(implied(spec.warmup_port, spec.mem_fraction))
        return [making.on_slice(spec, implied, index) for index in range(len(self._slices))]

    def _watch(self, index: int) -> Watch:
        which = f"slice {index}: " if len(self._slices) > 1 else ""

        def report(hint: str, done: int | None, total: int | None) -> None:
            self._report(which + hint, done, total)

        return Watch(self._started + self.survey.request.spec.timeout_s, self.cancelled, self._tick, report)

    def _failed(self, error: RayprepError) -> VerifyResult:
        return VerifyResult(
            ran=True,
            status="error",
            duration_s=self._elapsed,
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
            proof = Verification(
                verified_at=utc_now(),
                command=result.command,
                ready_s=result.ready_s or 0.0,
                slices=len(self._slices),
            )
            kept = {"verification": proof, "server_command": redacted_command(self._own_command)}
            write_completion(self.survey.layout, served.model_copy(update=kept))
        elif result.error_type is ErrorType.VERIFY_FAILED:
            layout = self.survey.layout
            repair(layout, StageName.SERVE, served, (), None, lambda _: (), rebuild=False)
            layout.store.unlink(layout.completion(StageName.SERVE, served.key), missing_ok=True)

    def _say(self, result: VerifyResult) -> None:
        servers = f" of {len(self._slices)} servers at once" if len(self._slices) > 1 else ""
        self.emit(
            event(
                VERIFY,
                Phase.END,
                status=result.status,
                error_type=result.error_type,
                duration_s=result.duration_s,
                message=result.message or f"{result.new_files} new files, {result.jit_events} compile events{servers}",
            )
        )

    def _report(self, hint: str, done: int | None, total: int | None) -> None:
        self._last_beat = time.monotonic()
        self.emit(event(VERIFY, Phase.PROGRESS, elapsed_s=self._elapsed, hint=hint, done=done, total=total))

    def _tick(self) -> None:
        if time.monotonic() - self._last_beat >= self.survey.request.spec.heartbeat_s:
            self._report("running", None, None)


def _unprepared() -> StageError:
    return StageError(
        ErrorType.VERIFY_FAILED,
        "nothing is prepared for this model, layout and flags",
        hint="run rayprep ensure with the same flags first",
    )
