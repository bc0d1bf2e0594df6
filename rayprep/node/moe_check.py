"""Whether a server uses the MoE config that is here: its log decides the result of `moe_tune`."""

import os
from pathlib import PurePath

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import Located
from rayprep.host.layout import Layout
from rayprep.model.completion import Completion
from rayprep.model.result import Artifacts, StageResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.node.result_writer import failed_result
from rayprep.node.survey import Survey
from rayprep.sglang.moe_config_lines import MoeConfigs, complaint
from rayprep.stages.moe_tune.files import adopt_config
from rayprep.store.completions import write_completion


def confirmed(result: StageResult, said: MoeConfigs, log: Located) -> StageResult | None:
    """`moe_tune`'s result with what a server's log says; None where that changes nothing.

    An earlier server's word stands: a campaign's own may have a MoE kernel of another kind. Where its log is not here,
    this one's takes its place.
    """
    artifacts = result.artifacts
    if result.status not in (StageStatus.OK, StageStatus.NOOP) or artifacts is None or artifacts.config_file is None:
        return None
    config = PurePath(artifacts.config_file.container_path)
    uses = said.uses(config)
    if artifacts.verified_in_log and (artifacts.verify_log or not uses):
        return None
    if uses:
        found = artifacts.model_copy(update={"verified_in_log": True, "verify_log": log})
        return result.model_copy(update={"artifacts": found, "verified_in_log": True})
    missed = artifacts.model_copy(update={"verified_in_log": False, "verify_log": log})
    error = StageError(ErrorType.VERIFY_LOG_MISSING, complaint(config, said), hint=f"read {log.host_path}")
    failed = failed_result(StageName.MOE_TUNE, error, ran=result.ran, duration_s=result.duration_s)
    return failed.model_copy(update={"artifacts": missed, "verified_in_log": False, "warnings": result.warnings})


def keep_word(layout: Layout, completion: Completion | None, judged: StageResult) -> None:
    """Notes in the completion which log said so. One that it did not bear out goes, or the next run would believe it.

    Raises:
        OSError: it cannot be written.
    """
    if completion is None:
        return
    if judged.status is StageStatus.ERROR:
        layout.store.unlink(layout.completion(StageName.MOE_TUNE, completion.key), missing_ok=True)
    else:
        log = (judged.artifacts or Artifacts()).verify_log
        write_completion(layout, completion.model_copy(update={"verified_in_log": True, "verify_log": log}))


def with_config(result: StageResult, survey: Survey) -> StageResult:
    """A noop's result with the config that is here. A host that received it makes what was not shipped."""
    completion = survey.completions.get(StageName.MOE_TUNE)
    found = adopt_config(survey.layout, completion) if completion else None
    if completion is None or found is None:
        return result
    log = completion.verify_log if completion.verify_log and _is_here(completion.verify_log) else None
    told = {"verified_in_log": completion.verified_in_log, "verify_log": log, "tuning": completion.tuning}
    units = (result.artifacts or Artifacts()).units
    artifacts = found.artifacts.model_copy(update={"units": units, **told})
    known = {"verified_in_log": completion.verified_in_log, "warnings": (*result.warnings, *found.warnings)}
    return result.model_copy(update={"artifacts": artifacts, **known})


def _is_here(log: Located) -> bool:
    """Hosts that share a profiles root have logs of their own, and those are not kept for ever."""
    return os.path.isfile(log.container_path)  # noqa: PTH113 - which asks nothing that a wild name could break
