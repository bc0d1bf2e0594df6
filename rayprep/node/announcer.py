"""What a run says while it goes on, and of what it need not run: as events, and in its result."""

from collections.abc import Callable, Iterable
from pathlib import Path

from rayprep.base.errors import RayprepError
from rayprep.base.otlp import PACKAGES
from rayprep.host.group_access import shares
from rayprep.host.locks import Holder, lock_of
from rayprep.host.owned import group_writes, open_to_all
from rayprep.host.toolchain import can_trace
from rayprep.model.container_manifest import Manifest
from rayprep.model.events import Event, Phase, event, run_end
from rayprep.model.plan import Action, Decision
from rayprep.model.proof import VERIFY, skipped
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.node import after_run
from rayprep.node.completion_writer import record_skip
from rayprep.node.inventory import warning_of
from rayprep.node.moe_check import with_config
from rayprep.node.request import NodeRequest
from rayprep.node.result_writer import Recorder, settled_result
from rayprep.node.survey import Survey
from rayprep.sglang.releases import warning_of_release
from rayprep.stages.moe_tune.files import seed_for_servers

Emit = Callable[[Event], None]


class Telling:
    """One run's voice: whoever listens hears each event, and the recorder counts it."""

    def __init__(self, request: NodeRequest, survey: Survey, listener: Emit) -> None:
        self._request, self._slug, self._layout, self._listener = request, survey.model.slug, survey.layout, listener
        self._answer, self._sglang = survey.request.answer, survey.signature.sglang_version
        self.recorder = Recorder(request, survey)

    def emit(self, each: Event) -> None:
        self.recorder.heard(each)
        self._listener(each)

    def warn(self, message: str) -> None:
        self.recorder.warn(message)
        self.emit(event("ensure", Phase.WARNING, message=message))

    def begin(self) -> None:
        for warning in self._request.resolved.warnings:
            self.emit(event("ensure", Phase.WARNING, message=warning))
        if problem := warning_of(self._answer):
            self.warn(problem)
        if problem := warning_of_release(self._sglang):
            self.warn(problem)
        for folder in open_to_all(self._layout.profiles):
            self.warn(f"everybody on this host may write to {folder}, and so decide what servers run (chmod o-w it)")
        if not shares() and group_writes(self._layout.profiles):
            self.warn(
                f"this user's umask keeps the group out of what is made in {self._layout.profiles}, which it shares"
            )
        if self._request.resolved.spec.otlp_endpoint and not can_trace():
            self.warn(f"no traces: {' or '.join(PACKAGES)} is not installed (pip install 'rayprep[otel]')")

    def begin_stages(self, container: Manifest | None, stages: Iterable[StageName]) -> None:
        """Says in a container run's manifest that they are being built, and makes ready what any server reads."""
        if problem := seed_for_servers(self._layout):
            self.warn(problem)
        if container and (problem := after_run.tell_begun(container, self.recorder.result, stages)):
            self.warn(problem)

    def waiting(self, path: Path, holder: Holder | None, waited: float) -> None:
        """For a lock, for so many seconds until now."""
        held = holder.held_for() if holder else waited
        self.emit(
            event(
                "ensure",
                Phase.WAIT_LOCK,
                slug=self._slug,
                hint=lock_of(path),
                held_for_s=round(held, 1),
                holder=str(holder or "somebody who has not signed it"),
                message=str(path),
            )
        )

    def settle(self, survey: Survey, decisions: Iterable[Decision]) -> None:
        """Records stages that have nothing to run."""
        for decision in decisions:
            result = settled_result(decision, survey)
            if decision.stage is StageName.MOE_TUNE and decision.action is Action.NOOP:
                result = with_config(result, survey)
            if decision.record_skip:
                self._keep_skip(survey, decision)
            self.emit(end_event(decision.stage, result))
            self.recorder.stage(decision.stage, result)

    def _keep_skip(self, survey: Survey, decision: Decision) -> None:
        try:
            record_skip(survey, decision, self._request.run_id)
        except OSError as error:
            # Without it the cache reads as invalid, which is no reason to fail what has nothing to do.
            self.warn(f"{decision.stage}: its skip cannot be kept: {error.strerror or error}: {error.filename}")

    def leave_unproved(self, reason: str) -> None:
        self.emit(event(VERIFY, Phase.END, status="skipped", duration_s=0.0, reason=reason))
        self.recorder.verify(skipped(reason))

    def skip_the_rest(self, error: RayprepError) -> None:
        """Stages that were never reached are in the result too, so that a reader finds all of them."""
        for stage in StageName:
            if stage not in self.recorder.result.stages:
                reason = error.error_type.value if error.error_type else "not_reached"
                result = StageResult(ran=False, status=StageStatus.SKIPPED, status_code=0, reason=reason)
                self.recorder.stage(stage, result)

    def end(self, result: PrepResult, stopped: RayprepError | None) -> PrepResult:
        """`stopped` is what ended the run as a whole, if anything did."""
        self.emit(run_end(result.status.value, stopped, result.run.duration_s))
        return result


def end_event(stage: StageName, result: StageResult) -> Event:
    """How a stage went."""
    error = result.errors[0] if result.errors else None
    return event(
        stage.value,
        Phase.END,
        status=result.status.value,
        duration_s=result.duration_s,
        reason=result.reason,
        error_type=result.error_type,
        message=error.message if error else None,
        hint=(error.hint or None) if error else None,
    )
