"""Reading and writing records: strict out, tolerant in, times to the second."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayprep.base.records import Record, Utc, Utf8, encodable, format_utc, parse_utc, read_tolerant, to_json
from rayprep.base.records import utc_from_timestamp as from_timestamp
from rayprep.model.completion import Completion
from tests.model.samples import completion

UTC_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Timed(Record):
    at: Utc


class Named(Record):
    name: Utf8


def test_a_writer_refuses_a_field_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        Completion.model_validate({**completion().model_dump(), "surprise": 1})


def test_a_reader_ignores_fields_it_does_not_know_at_every_depth() -> None:
    written = json.loads(to_json(completion()))
    for place in (written, written["identity"], written["signature"]):
        place["from_the_future"] = {"deeply": ["nested"]}
    assert read_tolerant(Completion, json.dumps(written)) == completion()


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"text"', "{}", b"\xff\xfe", '{"stage": "inductor"}'])
def test_a_reader_raises_only_validation_errors(text: str | bytes) -> None:
    with pytest.raises(ValidationError):
        read_tolerant(Completion, text)


def test_a_reader_refuses_a_known_field_of_another_type() -> None:
    written = json.loads(to_json(completion()))
    written["identity"]["tp"] = "many"
    with pytest.raises(ValidationError):
        read_tolerant(Completion, json.dumps(written))


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        completion().key = "other"  # type: ignore[misc]  # what mypy refuses, pydantic is to refuse too


def test_json_is_indented_and_ends_with_one_newline() -> None:
    text = to_json(Timed(at="2025-10-09T01:12:00Z"))
    assert text == '{\n  "at": "2025-10-09T01:12:00Z"\n}\n'


@pytest.mark.parametrize(
    "value",
    [
        "2025-10-09T01:12:00",
        "2025-10-09 01:12:00Z",
        "2025-10-09T01:12:00+00:00",
        "2025-10-09T01:12:00.5Z",
        "2025-1-9T1:2:3Z",
        "25-10-09T01:12:00Z",
        "2025-13-09T01:12:00Z",
        "2025-10-09T01:12:60Z",
        "\uff12\uff10\uff12\uff15-10-09T01:12:00Z",
        " 2025-10-09T01:12:00Z",
        "",
    ],
)
def test_no_other_form_of_time_is_taken(value: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_utc(value)
    with pytest.raises(ValidationError):
        Timed(at=value)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.integers(-12, 12))
def test_a_time_comes_back_as_it_was_written(naive: datetime, hours: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(hours=hours)))
    text = format_utc(moment)
    assert UTC_FORM.fullmatch(text)
    assert parse_utc(text) == moment.replace(microsecond=0).astimezone(UTC)


@given(st.floats(allow_nan=False))
def test_every_time_that_a_file_can_have_is_written(seconds: float) -> None:
    text = from_timestamp(seconds)
    assert UTC_FORM.fullmatch(text)
    read = parse_utc(text).timestamp()
    if abs(seconds) < 6e10:
        assert abs(read - seconds) <= 1


@given(st.text(st.characters()))
def test_encodable_text_is_utf8_and_leaves_utf8_alone(text: str) -> None:
    safe = encodable(text)
    safe.encode()
    assert encodable(safe) == safe
    if all(not 0xD800 <= ord(char) <= 0xDFFF for char in text):
        assert safe == text


def test_text_that_no_json_file_can_hold_is_refused() -> None:
    assert Named(name="schön").name == "schön"
    with pytest.raises(ValidationError, match="UTF-8"):
        Named(name="model-\udcff")
