"""The log lines of the contract's Appendix A, as people and as tools read them."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import ErrorType
from rayprep.base.records import parse_utc
from rayprep.model.events import Event, Phase, event

START = {
    "name": "deep_gemm",
    "phase": "start",
    "ts": "2025-10-09T01:12:00Z",
    "settings": {"model": "DeepSeek-V3", "tp": 8, "block": 128},
}
PROGRESS = {"name": "deep_gemm", "phase": "progress", "elapsed_s": 300, "hint": "nvrtc compiling GEMM variants (3/9)"}
END = {"name": "deep_gemm", "phase": "end", "status": "ok", "duration_s": 1243}
WAIT = {"phase": "wait_lock", "slug": "qwen2.5-7b", "held_for_s": 123}


def made(fields: dict[str, Any]) -> Event:
    return Event.model_validate({"name": "ensure", "ts": "2025-10-09T01:12:00Z", **fields})


def parsed(line: str) -> dict[str, Any]:
    assert line.startswith("OPTIMIZE_JSON {")
    assert "\n" not in line
    loaded: dict[str, Any] = json.loads(line.removeprefix("OPTIMIZE_JSON "))
    return loaded


@pytest.mark.parametrize("fields", [START, PROGRESS, END, WAIT], ids=["start", "progress", "end", "wait_lock"])
def test_the_seeds_json_lines_are_written_with_all_their_fields(fields: dict[str, Any]) -> None:
    written = parsed(made(fields).json_line)
    assert {**written, **fields} == written
    assert all(value is not None for value in written.values())


def test_the_seeds_start_line_is_written_to_the_byte() -> None:
    assert made(START).json_line == (
        'OPTIMIZE_JSON {"name":"deep_gemm","phase":"start","ts":"2025-10-09T01:12:00Z",'
        '"settings":{"model":"DeepSeek-V3","tp":8,"block":128}}'
    )


def test_the_seeds_human_line_is_written_to_the_byte() -> None:
    assert made(START).human_line == "[OPTIMIZE deep_gemm] starting {model=DeepSeek-V3, tp=8, block=128}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**PROGRESS, "hint": "nvrtc", "done": 3, "total": 9}, "nvrtc (3/9) after 300 s"),
        ({"name": "deep_gemm", "phase": "progress"}, "running"),
        ({**END, "duration_s": 1243.4}, "ok in 1243.4 s"),
        ({**END, "status": "noop", "reason": "valid_signature", "duration_s": 0}, "noop (valid_signature)"),
        (
            {**END, "status": "error", "error_type": ErrorType.STAGE_TIMEOUT, "message": "too long"},
            "error (stage_timeout) in 1243.0 s: too long",
        ),
        (
            {**END, "status": "error", "message": "too long", "hint": "raise --timeout"},
            "error in 1243.0 s: too long (raise --timeout)",
        ),
        (
            {**WAIT, "name": "deep_gemm", "holder": "pid 7 on host-1 (run r)"},
            "waiting for the lock of qwen2.5-7b, held for 123 s by pid 7 on host-1 (run r)",
        ),
        (
            {**WAIT, "name": "deep_gemm", "hint": "this host's GPUs", "holder": "pid 7 on host-1 (run r)"},
            "waiting for the lock of this host's GPUs, held for 123 s by pid 7 on host-1 (run r)",
        ),
        ({"name": "deep_gemm", "phase": "warning", "message": "typo ignored"}, "warning: typo ignored"),
        (
            {"name": "deep_gemm", "phase": "start", "settings": {"batch_sizes": (1, 8), "dtype": None}},
            "starting {batch_sizes=[1,8], dtype=None}",
        ),
    ],
)
def test_each_phase_has_its_words(fields: dict[str, Any], words: str) -> None:
    assert made(fields).human_line == f"[OPTIMIZE deep_gemm] {words}"


TEXT = st.none() | st.text()


@given(st.sampled_from(list(Phase)), TEXT, TEXT, TEXT, TEXT, st.dictionaries(st.text(), st.text(), max_size=2))
def test_every_event_is_one_line_of_each_kind(
    phase: Phase, hint: str | None, message: str | None, holder: str | None, slug: str | None, settings: dict[str, str]
) -> None:
    said = event("inductor", phase, hint=hint, message=message, holder=holder, slug=slug, settings=settings)
    assert said.human_line.isprintable()
    assert said.json_line.isprintable()
    assert re.match(r"\[OPTIMIZE inductor\] \S", said.human_line)
    assert parsed(said.json_line).get("message") == message
    assert Event.model_validate_json(said.json_line.removeprefix("OPTIMIZE_JSON ")) == said


def test_an_event_is_of_this_moment() -> None:
    parse_utc(event("ensure", Phase.WARNING, message="x").ts)
