"""What a server that answered everything has used and said joins the stages that it concerns."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from rayprep.model.result import Artifacts
from rayprep.model.stages import StageName, StageStatus
from rayprep.node.adopt import adopt
from rayprep.node.announcer import Telling, end_event
from rayprep.node.moe_check import confirmed, keep_word
from rayprep.node.result_writer import failed_result
from rayprep.node.survey import Survey, exact_completions
from rayprep.sglang.gemm_shapes import GemmShape
from rayprep.sglang.moe_config_lines import MoeConfigs
from rayprep.stages.moe_tune.second_try import SetAside, withdrawn_error


class ServerWord(Protocol):
    """What the stage `serve` and the proof have of their servers."""

    elsewhere: frozenset[str]
    gemm_shapes: tuple[GemmShape, ...]
    moe_configs: MoeConfigs | None


def take_in(survey: Survey, run_id: str, telling: Telling, word: ServerWord, log: Path) -> None:
    """What it used in other stages' caches becomes theirs, and which MoE config it uses decides `moe_tune`.

    Raises:
        OSError: a completion cannot be written.
    """
    known = exact_completions(survey)
    for stage, units in adopt(survey, run_id, known, word.elsewhere, word.gemm_shapes).items():
        telling.recorder.missed(stage, units)
        telling.warn(f"{stage}: the server needed more than was planned: {', '.join(units) or 'new files'}")
    if word.moe_configs is not None:
        _confirm_moe(survey, telling, word.moe_configs, log)


def tell_set_aside(telling: Telling, asides: Iterable[SetAside]) -> None:
    """Has the result say what servers died of. A config that was withdrawn is what `moe_tune` failed with."""
    for aside in asides:
        if aside.stage is not StageName.MOE_TUNE:
            telling.warn(f"{aside.stage}: {aside.message}")
            continue
        before = telling.recorder.result.stages.get(StageName.MOE_TUNE)
        ran, took = (before.ran, before.duration_s) if before else (False, 0.0)
        failed = failed_result(StageName.MOE_TUNE, withdrawn_error(aside), ran=ran, duration_s=took)
        made = (before.artifacts if before else None) or Artifacts()
        kept = Artifacts(tuning=made.tuning, refused=made.refused)
        failed = failed.model_copy(update={"artifacts": kept, "warnings": before.warnings if before else ()})
        telling.emit(end_event(StageName.MOE_TUNE, failed))
        telling.recorder.stage(StageName.MOE_TUNE, failed)


def _confirm_moe(survey: Survey, telling: Telling, said: MoeConfigs, log: Path) -> None:
    result = telling.recorder.result.stages.get(StageName.MOE_TUNE)
    judged = confirmed(result, said, survey.layout.located(log)) if result else None
    if judged is None:
        return
    keep_word(survey.layout, exact_completions(survey).get(StageName.MOE_TUNE), judged)
    if judged.status is StageStatus.ERROR:
        telling.emit(end_event(StageName.MOE_TUNE, judged))
    telling.recorder.stage(StageName.MOE_TUNE, judged)
