"""What the manifest is told of stages that begin, end, and are reset; what a harness then reads is in test_client."""

from rayprep.base.errors import ErrorType
from rayprep.model.container_manifest import Optimization
from rayprep.model.manifest_changes import Changes, begun, ended, removed
from rayprep.model.proof import VerifyResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.report import ResetReport
from tests.model.samples import MOMENT, prep_result

WARM = prep_result(dict.fromkeys(StageName, StageStatus.OK))


def told(changes: Changes) -> dict[str, Optimization]:
    assert {where for where, _ in changes} <= {"optimizations"}
    return {stage: Optimization.model_validate(value) for (_, stage), value in changes.items()}


def left_out(reason: str) -> set[str]:
    stages = {stage: each.model_copy(update={"reason": reason}) for stage, each in SKIPPED.stages.items()}
    return set(told(ended(SKIPPED.model_copy(update={"stages": stages}))))


SKIPPED = prep_result({StageName.DEEP_GEMM: StageStatus.SKIPPED})


def test_a_stage_that_builds_is_not_done() -> None:
    (found,) = told(begun(WARM, [StageName.FLASHINFER])).items()
    assert found[0] == "flashinfer"
    assert (found[1].status, found[1].reason) == (StageStatus.ERROR, "in_progress_or_aborted")
    assert (found[1].model_slug, found[1].tp_size) == ("tiny-dense", 1)


def test_every_stage_that_was_judged_is_told() -> None:
    assert {stage: each.status for stage, each in told(ended(WARM)).items()} == dict.fromkeys(StageName, "ok")
    assert left_out("no_gpu") == {"deep_gemm"}


def test_what_was_left_out_keeps_what_was_said_before() -> None:
    assert left_out("requested") == left_out("not_selected") == left_out(ErrorType.INTERRUPTED) == set()


def test_a_proof_that_fails_is_its_stages_failure() -> None:
    proof = VerifyResult(ran=True, status="error", error_type=ErrorType.VERIFY_FAILED, duration_s=3.0)
    found = told(ended(WARM.model_copy(update={"verify": proof})))
    assert (found["serve"].status, found["serve"].error_type) == (StageStatus.ERROR, "verify_failed")
    assert found["flashinfer"].status is StageStatus.OK


def test_a_reset_names_the_stages_whose_completions_went() -> None:
    report = ResetReport(
        run_id="r",
        dry_run=False,
        taken_at=MOMENT,
        profiles_root="/p",
        filters=Filters(),
        removed=(),
        completions_dropped=(".rayprep/inductor/a-tp1-0.json", ".rayprep/serve/a-tp1-0.json"),
        markers_dropped=(),
        freed_bytes=0,
        warnings=(),
        complete=True,
    )
    later = "2025-10-09T03:00:00Z"
    assert removed(report.completions_dropped, later) == {("resets", "inductor"): later, ("resets", "serve"): later}
    assert removed(report.declined().completions_dropped, later) == {}
