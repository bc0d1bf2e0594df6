"""The contract's spec file, in both its forms, and whatever else people put into one."""

import json
import re
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.model.spec import MoeStrategy, PrepSpec, Resolved, StageOp, resolve
from rayprep.model.spec_file import SpecFile, parse_spec_file
from rayprep.model.stages import StageName

FIRST_FORM = """{
    "model_path": "Qwen/Qwen2.5-7B",
    "tp": 8,
    "ops": {
      "deep_gemm": "ensure",
      "flashinfer": "ensure",
      "moe": {"mode":"tune","policy":{"strategy":"triton","dtype":"fp8","blocks":[128,256]}},
      "inductor": "ensure"
    }
}"""
SECOND_FORM = """{
  "schema_version": "1",
  "model_path": "Qwen/Qwen2.5-7B",
  "tp": 8,
  "ops": {
    "deep_gemm": "rebuild",
    "flashinfer": "skip",
    "moe": {
      "mode": "ensure",
      "policy": { "strategy": "sweep", "dtype": "fp8_w8a8", "batch_sizes": [128,256] }
    },
    "inductor": "ensure"
  },
  "timeout_s": 3600
}"""


def read(document: object) -> SpecFile:
    return parse_spec_file(json.dumps(document), "spec.json")


def resolved(text: str, **flags: object) -> Resolved:
    file = parse_spec_file(text, "spec.json")
    return resolve(flags, file.values, file.ignored, file.warnings)


def test_the_first_form_reads_as_the_issue_says() -> None:
    got = resolved(FIRST_FORM)
    spec = got.spec
    assert (spec.model, spec.tp) == ("Qwen/Qwen2.5-7B", 8)
    assert spec.op(StageName.MOE_TUNE) is StageOp.REBUILD, "tune reads as rebuild"
    assert spec.moe_strategy is MoeStrategy.AUTO, "the strategy triton reads as auto"
    assert spec.moe_batch_sizes == (128, 256), "blocks read as the tuner's batch sizes"
    assert spec.block_sizes == ()
    assert spec.moe_dtype == "fp8_w8a8"
    assert {spec.op(stage) for stage in StageName if stage is not StageName.MOE_TUNE} == {StageOp.ENSURE}
    assert (got.ignored_spec_keys, got.warnings) == ((), ())
    assert got.source == "spec"


def test_the_second_form_reads_as_the_issue_says() -> None:
    got = resolved(SECOND_FORM)
    spec = got.spec
    assert [spec.op(stage).value for stage in StageName] == ["rebuild", "ensure", "skip", "ensure", "ensure"]
    assert (spec.moe_strategy, spec.moe_dtype) == (MoeStrategy.SWEEP, "fp8_w8a8")
    assert (spec.moe_batch_sizes, spec.timeout_s) == ((128, 256), 3600)
    assert (got.ignored_spec_keys, got.warnings) == ((), ())


@pytest.mark.parametrize("op", ["ensure", "rebuild", "skip"])
@pytest.mark.parametrize("form", ["plain", "mode", "op"])
@pytest.mark.parametrize("stage", ["deep_gemm", "moe", "moe_tune", "triton", "flashinfer", "inductor", "serve"])
def test_an_op_is_taken_in_each_of_its_forms(stage: str, form: str, op: str) -> None:
    got = read({"ops": {stage: op if form == "plain" else {form: op}}})
    name = "moe_tune" if stage in ("moe", "triton") else stage
    assert got.values == {"ops": {name: op}}
    assert got.warnings == ()


def test_flags_win_over_the_file_and_the_source_tells() -> None:
    got = resolved(SECOND_FORM, tp=2)
    assert got.spec.tp == 2
    assert got.source == "flags"
    assert (got.sources["tp"], got.sources["timeout_s"], got.sources["device"]) == ("flag", "spec", "default")


@pytest.mark.parametrize(
    ("document", "path", "nearest"),
    [
        ({"modle_path": "m"}, "modle_path", "model_path"),
        ({"time_out_s": 1}, "time_out_s", "timeout_s"),
        ({"batchsizes": [1]}, "batchsizes", "batch_sizes"),
        ({"ops": {"deepgemm": "ensure"}}, "ops.deepgemm", "ops.deep_gemm"),
        ({"ops": {"inducter": "skip"}}, "ops.inducter", "ops.inductor"),
        ({"ops": {"moe": {"moed": "tune"}}}, "ops.moe.moed", "ops.moe.mode"),
        ({"ops": {"moe": {"polcy": {}}}}, "ops.moe.polcy", "ops.moe.policy"),
        ({"ops": {"moe": {"policy": {"stragety": "auto"}}}}, "ops.moe.policy.stragety", "ops.moe.policy.strategy"),
    ],
)
def test_an_unknown_key_is_ignored_with_the_nearest_known_one(document: object, path: str, nearest: str) -> None:
    got = read(document)
    assert got.ignored == (path,)
    assert [warning.endswith(f"unknown key {path} ignored; did you mean {nearest}?") for warning in got.warnings] == [
        True
    ]
    assert {key for key in got.values if key != "ops"} == set()


def test_an_unknown_op_among_known_ones_leaves_the_others_in_force() -> None:
    got = read({"ops": {"quux": {"mode": "rebuild"}, "inductor": "skip"}})
    assert got.values == {"ops": {"inductor": "skip"}}
    assert got.ignored == ("ops.quux",)


def test_a_policy_belongs_to_moe_alone() -> None:
    got = read({"ops": {"deep_gemm": {"mode": "ensure", "policy": {"blocks": [1]}}}})
    assert got.ignored == ("ops.deep_gemm.policy",)
    assert "did you mean ops.deep_gemm.policy" not in got.warnings[0]
    assert got.values == {"ops": {"deep_gemm": "ensure"}}


@pytest.mark.parametrize("key", ["dp", "dp_size", "ep", "ep_size", "pp", "pp_size", "nnodes", "enable_dp_attention"])
def test_other_layouts_are_refused_by_name(key: str) -> None:
    with pytest.raises(BadRequest, match=rf"\b{key}=.*not supported"):
        read({"model_path": "m", key: True if key.startswith("enable") else 2})


@pytest.mark.parametrize("key", ["dp", "ep", "pp", "nnodes"])
def test_a_layout_of_one_is_an_unknown_key_like_any_other(key: str) -> None:
    got = read({"model_path": "m", key: 1})
    assert got.ignored == (key,)


@pytest.mark.parametrize("args", [["--dp", "2"], ["--ep-size=2"], ["--pp-size", "2"], ["--enable-dp-attention"]])
def test_other_layouts_in_the_files_server_arguments_are_refused_with_the_model(args: list[str]) -> None:
    from rayprep.sglang.flags import check_server_args

    spec = resolved(json.dumps({"model": "m", "server_args": args})).spec
    with pytest.raises(BadRequest, match="tensor-parallel servers only"):
        check_server_args(spec.server_args, spec.tp)


@pytest.mark.parametrize("version", ["2", 2, 1.5, None, ["1"]])
def test_another_version_is_read_with_a_warning(version: object) -> None:
    got = read({"schema_version": version, "model_path": "m"})
    assert len(got.warnings) == 1
    assert repr(version) in got.warnings[0]
    assert got.values == {"model": "m"}
    assert read({"schema_version": 1}).warnings == read({"schema_version": "1"}).warnings == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("{", "not JSON"),
        ('{"tp": }', "not JSON"),
        ("\ufeff{}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"tp": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", "must be a JSON object, not list"),
        ('"tp"', "must be a JSON object, not str"),
        ("null", "must be a JSON object, not null"),
        ('{"ops": ["inductor"]}', "ops must be a JSON object, not list"),
        ('{"ops": null}', "ops must be a JSON object"),
        ('{"ops": {"moe": {"policy": "auto"}}}', "ops.moe.policy must be a JSON object"),
        ('{"ops": {"inductor": "tuen"}}', "ops.inductor is 'tuen'"),
        ('{"ops": {"inductor": null}}', "ops.inductor is None"),
        ('{"ops": {"inductor": ["ensure"]}}', r"ops.inductor is ['ensure']"),
        ('{"ops": {"inductor": {"mode": true}}}', "ops.inductor is True"),
    ],
)
def test_a_wrong_form_is_one_line_that_names_the_file(text: str, says: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(says)) as caught:
        parse_spec_file(text, "spec.json")
    assert "spec.json" in caught.value.line
    assert len(caught.value.line.splitlines()) == 1


def test_a_key_that_no_file_can_hold_does_not_spoil_the_result() -> None:
    got = parse_spec_file('{"\\ud800": 1}', "spec.json")
    for text in (*got.ignored, *got.warnings):
        text.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KNOWN = {
    "model_path": st.text("abc/", min_size=1),
    "tp": st.integers(1, 8),
    "batch_sizes": st.lists(st.integers(1, 99), min_size=1, max_size=3),
    "block_sizes": st.lists(st.integers(1, 99), max_size=3),
    "max_seq_len": st.integers(1, 9999),
    "timeout_s": st.integers(1, 9999),
    "heartbeat_s": st.integers(1, 9999),
    "warmup_port": st.integers(1024, 65535),
    "mem_fraction": st.floats(0.1, 0.9),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "server_args": st.lists(st.just("--a=1"), max_size=2),
}
TAKEN = {*KNOWN, "model", "ops", "schema_version", "campaign"}
UNKNOWN = st.dictionaries(st.text("xyz_", min_size=1, max_size=8).filter(lambda key: key not in TAKEN), JSON)


@given(st.fixed_dictionaries({}, optional=KNOWN), UNKNOWN, st.randoms())
def test_known_keys_come_through_and_unknown_ones_are_named(
    known: dict[str, Any], unknown: dict[str, Any], random: Random
) -> None:
    items = [*known.items(), *unknown.items()]
    random.shuffle(items)
    got = read(dict(items))
    assert got.values == {"model" if key == "model_path" else key: value for key, value in known.items()}
    assert sorted(got.ignored) == sorted(unknown)
    assert len(got.warnings) == len(unknown)
    for key in got.ignored:
        assert any(f"unknown key {key} ignored" in warning for warning in got.warnings)
    spec = resolve({"model": "m"}, got.values).spec
    written = {"model_path" if key == "model" else key: value for key, value in spec.model_dump(mode="json").items()}
    again = read({key: value for key, value in written.items() if key in KNOWN and value is not None})
    assert resolve({}, again.values).spec == PrepSpec.model_validate({**spec.model_dump(), "ops": {}})


@given(JSON | st.fixed_dictionaries({}, optional={"ops": JSON, "tp": JSON, "dp": JSON, "schema_version": JSON}))
def test_any_json_is_read_or_refused_in_one_line(document: object) -> None:
    try:
        got = read(document)
        answer = resolve({"model": "m"}, got.values, got.ignored, got.warnings)
    except BadRequest as error:
        assert len(error.line.splitlines()) == 1
        error.line.encode()
    else:
        answer.model_dump_json()


def test_a_campaign_is_a_list_of_requests() -> None:
    got = read(
        {"schema_version": "1", "campaign": [{"model": "a", "tp": 2}, {"model_path": "b", "ops": {"moe": "skip"}}]}
    )
    assert (got.values, got.warnings) == ({}, ())
    assert [each.values for each in got.campaign] == [
        {"model": "a", "tp": 2},
        {"model": "b", "ops": {"moe_tune": "skip"}},
    ]


def test_what_is_unknown_around_a_campaign_is_said_of_each_request() -> None:
    got = read({"name": "night", "campaign": [{"model": "a", "typo": 1}, {"model": "b"}]})
    assert [each.ignored for each in got.campaign] == [("name", "typo"), ("name",)]
    assert "spec.json, request 1: unknown key typo" in got.campaign[0].warnings[1]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"campaign": []}, "have one at least"),
        ({"campaign": {"model": "a"}}, "must be a list of requests"),
        ({"campaign": None}, "must be a list of requests"),
        ({"campaign": ["a"]}, "spec.json, request 1 must be a JSON object"),
        ({"campaign": [{"model": "a"}], "tp": 2}, "tp stands beside the campaign"),
        ({"campaign": [{"model": "a"}, {"campaign": []}]}, "request 2: a campaign has no campaigns"),
        ({"campaign": [{"model": "a", "pp": 2}]}, "pp"),
    ],
)
def test_a_campaign_that_is_none(document: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read(document)
