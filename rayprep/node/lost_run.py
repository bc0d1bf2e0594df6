"""Closes the result of a run whose agent cannot do it any more."""

from collections.abc import Sequence

from rayprep.base.errors import ErrorType, RayprepError, StageError
from rayprep.base.records import parse_utc, utc_now
from rayprep.base.written import parse_result, result_text
from rayprep.model.proof import VerifyResult
from rayprep.model.result import PrepResult, RunError, RunStatus, StageResult, overall_status
from rayprep.model.stages import StageName, StageStatus
from rayprep.node.request import NodeRequest
from rayprep.node.result_writer import Recorder, failed_result
from rayprep.node.survey import Survey
from rayprep.store.markers import read_marker


def close_result(request: NodeRequest, survey: Survey, error: RayprepError, *, ended: bool = True) -> PrepResult:
    """Writes the end of the run into its result: the stage that was running failed with `error`.

    Only for a run whose own agent is dead, or never lived; otherwise the agent is the one that writes.

    Args:
        ended: the agent has said that the run is over. Without its word a result that says so by itself is not
            believed: others may write there, too.
    """
    path = survey.layout.result(request.run_id)
    try:
        found = parse_result(PrepResult, survey.layout.runs.read(path))
    except (OSError, ValueError):
        found = None
    if found is None or found.run.invocation != request.invocation:
        found = Recorder(request, survey).result  # which keeps an earlier run's as history
    if found.run.finished_at is not None and (ended or found.status is not RunStatus.OK):
        return found  # the agent had written its last before it died
    result = closed(found, error, _running_stages(request, survey))
    survey.layout.runs.write(path, result_text(result))
    return result


def closed(result: PrepResult, error: RayprepError, running: Sequence[StageName]) -> PrepResult:
    """`result` with the running stages failed, those never reached skipped, and the run ended now."""
    kind = error.error_type or ErrorType.INTERNAL_ERROR
    stages = dict(result.stages)
    for stage in running:
        stages.setdefault(stage, failed_result(stage, error, ran=True))
    for stage in StageName:
        stages.setdefault(stage, StageResult(ran=False, status=StageStatus.SKIPPED, status_code=0, reason=kind.value))
    proving = result.verify is None and result.stages.get(StageName.SERVE) is not None and StageName.SERVE in running
    verify = VerifyResult(ran=True, status="error", error_type=kind, message=error.line) if proving else result.verify
    concerned: Sequence[StageName | None] = running or [None]
    new = (RunError(stage=stage, error_type=kind, message=error.line) for stage in concerned)
    errors = (*result.errors, *new)
    finished_at = utc_now()
    taken = parse_utc(finished_at) - parse_utc(result.run.started_at)
    return result.model_copy(
        update={
            "stages": {stage: stages[stage] for stage in StageName},
            "errors": errors,
            "verify": verify,
            "status": overall_status(stages, errors, finished=True),
            "run": result.run.model_copy(
                update={"finished_at": finished_at, "duration_s": max(0.0, taken.total_seconds())}
            ),
        }
    )


def _running_stages(request: NodeRequest, survey: Survey) -> list[StageName]:
    """The stages whose markers this very run wrote."""
    running = []
    for stage in StageName:
        try:
            marker = read_marker(survey.layout, survey.model.slug, stage)
        except (OSError, ValueError):
            continue
        if marker.invocation == request.invocation:
            running.append(stage)
    return running


def lost() -> StageError:
    return StageError(ErrorType.NODE_LOST, "the agent that ran the stages died")
