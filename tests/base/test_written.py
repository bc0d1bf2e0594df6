"""The text of a result."""

import json

import pytest

from rayprep.base.errors import ErrorType
from rayprep.base.records import read_tolerant, to_json
from rayprep.base.sealed import SealBroken, open_seal
from rayprep.base.written import parse_result, result_text
from rayprep.model.result import PrepResult, RunError
from rayprep.model.stages import StageName, StageStatus
from tests.model.samples import prep_result

RESULT = prep_result({StageName.SERVE: StageStatus.OK})


def test_a_result_is_sealed_and_one_of_an_earlier_version_is_read() -> None:
    text = result_text(RESULT)
    assert parse_result(PrepResult, text.encode()) == RESULT
    assert parse_result(PrepResult, to_json(RESULT).encode()) == RESULT
    assert read_tolerant(PrepResult, text) == RESULT, "an earlier version ignores it"
    assert list(json.loads(text)) == [*json.loads(to_json(RESULT)), "checksum"]
    with pytest.raises(SealBroken):
        parse_result(PrepResult, text.replace('"ok"', '"error"', 1).encode())


def test_no_string_of_a_result_keeps_a_secret() -> None:
    error = RunError(
        stage=None, error_type=ErrorType.INTERNAL_ERROR, message='no "redis://:hunter2@h"\n\tsk-' + "a" * 30
    )
    result = RESULT.model_copy(update={"errors": (error,), "warnings": ("see http://u:hunter2@h/?token=hunter3",)})
    text = result_text(result)
    assert "hunter" not in text
    assert "aaaa" not in text
    found = parse_result(PrepResult, text.encode())
    assert found.errors[0].message == 'no "redis://***@h"\n\t***'
    assert found.model_copy(update={"errors": (error,), "warnings": result.warnings}) == result
    assert open_seal(text.encode())
