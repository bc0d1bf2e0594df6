"""What a container's manifest is told of its caches after the start: changes for `container_manifest.merged`. Pure.

Whoever reads it then knows of every cache what the snapshot, which is of the start, cannot know. A stage is unfinished
in it from before its first file, so that a run that is killed leaves no old `ok` standing.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from rayprep.base.errors import ErrorType
from rayprep.base.records import utc_now
from rayprep.model.completion import CheckState
from rayprep.model.container_manifest import Optimization
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageName, StageStatus

Changes = Mapping[tuple[str, ...], object]

_SAYS_NOTHING = ("requested", "not_selected", "not_reached", *ErrorType)
"""Why a stage was skipped that might have had work to do: its cache is as it was."""


def begun(result: PrepResult, stages: Iterable[StageName]) -> Changes:
    """Before `stages` build."""
    how = StageResult(ran=True, status=StageStatus.ERROR, status_code=0, reason=CheckState.IN_PROGRESS)
    return _changes(result, dict.fromkeys(stages, how))


def ended(result: PrepResult) -> Changes:
    """After a run. Where the proof has failed, its stage has: servers would still compile."""
    found = {stage: each for stage, each in result.stages.items() if not _says_nothing(each)}
    proof = result.verify
    if proof and proof.status == "error":
        kind, took = proof.error_type or ErrorType.VERIFY_FAILED, proof.duration_s
        found[StageName.SERVE] = StageResult(
            ran=True, status=StageStatus.ERROR, status_code=0, error_type=kind, duration_s=took
        )
    return _changes(result, found)


def removed(completions: Iterable[str], at: str) -> Changes:
    """Return what a reset changes: the stages of which it drops a completion, `.../<stage>/<key>.json`, at a time."""
    stages = {PurePath(path).parent.name for path in completions}
    return {("resets", stage): at for stage in sorted(stages)}


def _says_nothing(each: StageResult) -> bool:
    return each.status is StageStatus.SKIPPED and each.reason in _SAYS_NOTHING


def _changes(result: PrepResult, stages: Mapping[StageName, StageResult]) -> Changes:
    return {("optimizations", stage.value): _optimization(result, each) for stage, each in stages.items()}


def _optimization(result: PrepResult, stage: StageResult) -> object:
    made = Optimization(
        status=stage.status,
        reason=stage.reason,
        duration_s=stage.duration_s,
        size_delta_bytes=stage.artifacts.disk_delta_bytes if stage.ran and stage.artifacts else None,
        error_type=stage.error_type,
        model_slug=result.run.model_slug,
        tp_size=result.run.tp,
        finished_at=utc_now(),
    )
    return made.model_dump(mode="json")
