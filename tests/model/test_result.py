"""`prep_result.json`: which status, which exit code, which fields."""

import json
from itertools import product
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import ErrorType
from rayprep.base.records import Located, read_tolerant, to_json
from rayprep.model.proof import VerifyResult
from rayprep.model.result import Artifacts, PrepResult, RunError, RunStatus, Tally, overall_status
from rayprep.model.stages import STAGES, StageName, StageStatus
from tests.model.samples import prep_result, stage_result

OK, ERROR, SKIPPED, NOOP = StageStatus.OK, StageStatus.ERROR, StageStatus.SKIPPED, StageStatus.NOOP
STATUSES = st.dictionaries(st.sampled_from(list(StageName)), st.sampled_from(list(StageStatus))).map(
    lambda found: {stage: found[stage] for stage in StageName if stage in found}
)
SCHEMA = jsonschema.Draft202012Validator(PrepResult.model_json_schema(mode="serialization"))
RUN_ERRORS = st.lists(st.sampled_from(ErrorType))


def of_the_run(*kinds: ErrorType) -> tuple[RunError, ...]:
    return tuple(RunError(stage=None, error_type=kind, message=f"{kind}") for kind in kinds)


def all_stages(*statuses: StageStatus) -> dict[StageName, StageStatus]:
    return dict(zip(StageName, statuses, strict=True))


def test_the_exit_code_is_the_first_failing_stages() -> None:
    assert prep_result(all_stages(OK, OK, OK, OK, OK)).exit_code == 0
    assert prep_result(all_stages(OK, ERROR, OK, ERROR, ERROR)).exit_code == 11
    assert prep_result(all_stages(NOOP, SKIPPED, ERROR, ERROR, SKIPPED)).exit_code == 12
    assert prep_result(all_stages(ERROR, ERROR, ERROR, ERROR, ERROR)).exit_code == 10
    assert prep_result(all_stages(NOOP, OK, SKIPPED, OK, ERROR)).exit_code == 14
    assert prep_result({}).exit_code == 0


def test_all_failures_are_listed_whatever_the_exit_code() -> None:
    failed = prep_result(all_stages(OK, ERROR, OK, ERROR, ERROR)).errors
    assert [error.stage for error in failed] == ["moe_tune", "inductor", "serve"]
    assert all(error.message for error in failed)


def test_the_order_of_failures_in_the_file_does_not_matter() -> None:
    result = prep_result({StageName.INDUCTOR: ERROR, StageName.DEEP_GEMM: ERROR})
    assert result.exit_code == 10


@given(STATUSES, RUN_ERRORS)
def test_precedence_of_exit_codes(statuses: dict[StageName, StageStatus], kinds: list[ErrorType]) -> None:
    result = prep_result(statuses, of_the_run(*kinds))
    failed = [STAGES[stage].code for stage, status in statuses.items() if status is ERROR]
    if ErrorType.INTERRUPTED in kinds:
        expected = 130
    elif failed:
        expected = min(failed)
    elif ErrorType.LOCK_TIMEOUT in kinds:
        expected = 4
    elif ErrorType.INTERNAL_ERROR in kinds:
        expected = 1
    else:
        expected = 3 if kinds else 0
    assert result.exit_code == expected
    assert (result.exit_code == 0) == (result.status is RunStatus.OK)


def test_a_lock_timeout_of_a_stage_is_the_stages_code() -> None:
    stages = {StageName.FLASHINFER: stage_result(ERROR, StageName.FLASHINFER, ErrorType.LOCK_TIMEOUT)}
    errors = (RunError(stage=StageName.FLASHINFER, error_type=ErrorType.LOCK_TIMEOUT, message="held"),)
    assert prep_result({}).model_copy(update={"stages": stages, "errors": errors}).exit_code == 12


def test_status_over_every_combination_of_stages() -> None:
    for statuses in product(StageStatus, repeat=len(StageName)):
        status = prep_result(all_stages(*statuses)).status
        if ERROR not in statuses:
            assert status is RunStatus.OK
        elif OK in statuses:
            assert status is RunStatus.PARTIAL
        else:
            assert status is RunStatus.ERROR


@given(STATUSES)
def test_a_run_that_is_not_over_or_was_interrupted_is_partial(statuses: dict[StageName, StageStatus]) -> None:
    stages = {stage: stage_result(status, stage) for stage, status in statuses.items()}
    assert overall_status(stages, (), finished=False) is RunStatus.PARTIAL
    assert overall_status(stages, of_the_run(ErrorType.INTERRUPTED), finished=True) is RunStatus.PARTIAL


def test_an_early_end_is_never_ok() -> None:
    assert overall_status({}, of_the_run(ErrorType.LOCK_TIMEOUT), finished=True) is RunStatus.ERROR
    good = {StageName.DEEP_GEMM: stage_result(OK, StageName.DEEP_GEMM)}
    assert overall_status(good, of_the_run(ErrorType.NODE_LOST), finished=True) is RunStatus.PARTIAL


def test_errors_may_be_read_only_once() -> None:
    assert overall_status({}, iter(of_the_run(ErrorType.INTERRUPTED)), finished=True) is RunStatus.PARTIAL
    assert overall_status({}, iter(of_the_run(ErrorType.NODE_LOST)), finished=True) is RunStatus.ERROR


def test_the_status_line_is_the_contracts() -> None:
    line = prep_result(all_stages(NOOP, OK, OK, OK, SKIPPED)).status_line
    assert line == "ok deep_gemm:noop moe_tune:ok flashinfer:ok inductor:ok serve:skipped"


def proved(statuses: dict[StageName, StageStatus], **proof: Any) -> PrepResult:  # noqa: ANN401 - handed on
    """A run with a proof at its end."""
    return prep_result(statuses).model_copy(update={"verify": VerifyResult.model_validate(proof)})


def test_a_proof_stands_last_in_the_status_line() -> None:
    result = proved(all_stages(NOOP, NOOP, NOOP, NOOP, OK), ran=True, status="ok")
    assert result.status_line == "ok deep_gemm:noop moe_tune:noop flashinfer:noop inductor:noop serve:ok verify:ok"


def test_a_proof_that_failed_is_a_failure_of_serve() -> None:
    failed = {"ran": True, "status": "error", "error_type": ErrorType.VERIFY_FAILED, "message": "one new file"}
    assert proved(all_stages(NOOP, NOOP, NOOP, NOOP, OK), **failed).exit_code == 14
    assert proved(all_stages(NOOP, NOOP, NOOP, NOOP, OK), ran=False, status="skipped").exit_code == 0
    # Whatever the proof says, the first failing stage in order is named.
    assert proved(all_stages(NOOP, ERROR, NOOP, NOOP, OK), **failed).exit_code == 11


SEED_RUN = (
    "run_id model_slug tp device_name cuda torch_version triton_version sglang_commit started_at finished_at"
    " duration_s settings"
)
SEED_SETTINGS = "source spec_version tp blocks warmup_port mem_fraction write_mode env ignored_spec_keys"
SEED_STAGE = "ran status status_code duration_s artifacts error_type warnings errors"


def written(result: PrepResult) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(to_json(result))
    return loaded


def test_every_field_of_the_contract_is_in_the_file() -> None:
    document = written(prep_result(all_stages(OK, ERROR, NOOP, SKIPPED, OK)))
    fields = {"schema_version", "status", "run", "stages", "verify", "telemetry_probe", "errors", "warnings"}
    assert fields <= set(document)
    assert document["schema_version"] == "1"
    assert set(SEED_RUN.split()) <= set(document["run"])
    assert set(SEED_SETTINGS.split()) <= set(document["run"]["settings"])
    assert document["run"]["settings"]["write_mode"] == "atomic"
    assert list(document["stages"]) == ["deep_gemm", "moe_tune", "flashinfer", "inductor", "serve"]
    for stage in document["stages"].values():
        assert set(SEED_STAGE.split()) <= set(stage)
    probe = {"prometheus_query", "with_run_filter", "sample_count", "ok"}
    assert probe <= set(document["telemetry_probe"])


def test_artifacts_leave_out_what_does_not_apply() -> None:
    made = Artifacts(files=Tally(count=1, bytes=2), cache_dir=Located(container_path="/c", host_path="/h"))
    document = json.loads(made.model_dump_json())
    assert document["files"] == {"count": 1, "bytes": 2}
    assert document["cache_dir"] == {"container_path": "/c", "host_path": "/h"}
    assert {"cubins", "workspace_dir", "config_file", "completion"}.isdisjoint(document)
    assert (document["disk_delta_bytes"], document["files_delta"]) == (0, 0)


@given(STATUSES, RUN_ERRORS)
def test_what_is_written_reads_back_and_fits_its_schema(
    statuses: dict[StageName, StageStatus], kinds: list[ErrorType]
) -> None:
    result = prep_result(statuses, of_the_run(*kinds))
    assert read_tolerant(PrepResult, to_json(result)) == result
    SCHEMA.validate(written(result))


@pytest.mark.parametrize("place", [("run",), ("run", "settings"), ("stages", "deep_gemm"), ("telemetry_probe",), ()])
def test_a_result_of_a_newer_rayprep_is_still_read(place: tuple[str, ...]) -> None:
    good = prep_result(all_stages(OK, OK, OK, OK, OK))
    document = written(good)
    inner = document
    for key in place:
        inner = inner[key]
    inner["from_the_future"] = [1]
    assert read_tolerant(PrepResult, json.dumps(document)) == good
