"""The request: flags over spec file over defaults, and what each value may be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.base.records import to_json
from rayprep.model.spec import DeviceChoice, MoeStrategy, PrepSpec, StageOp, check_against_model, resolve
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import Architecture, parse_architecture

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "tp": st.integers(1, 64),
    "batch_sizes": st.lists(st.integers(1, 512), min_size=1, max_size=4),
    "block_sizes": st.lists(st.integers(1, 512), max_size=3),
    "moe_strategy": st.sampled_from(["auto", "fixed", "sweep"]),
    "moe_dtype": st.sampled_from(["fp8_w8a8", "int8_w8a8"]),
    "max_seq_len": st.integers(1, 1 << 20),
    "timeout_s": st.floats(0.5, 1e6),
    "heartbeat_s": st.floats(0.5, 1e6),
    "warmup_port": st.integers(1024, 65535),
    "mem_fraction": st.floats(0.01, 0.99),
    "device": st.sampled_from(["auto", "cuda", "cpu"]),
    "slices": st.sampled_from([1, "2", 8, "all"]),
    "server_args": st.lists(st.sampled_from(["--a=1", "--b=2"]), max_size=3),
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def test_the_defaults_are_the_contracts() -> None:
    spec = resolve({"model": "tiny-dense"}).spec
    assert (spec.tp, spec.timeout_s, spec.heartbeat_s) == (1, 3600, 60)
    assert (spec.warmup_port, spec.mem_fraction) == (30999, 0.96)
    assert spec.device is DeviceChoice.AUTO
    assert spec.selected == tuple(StageName)
    assert {spec.op(stage) for stage in StageName} == {StageOp.ENSURE}


@given(SOME, SOME)
def test_flags_win_over_spec_over_defaults_and_sources_say_so(flags: dict[str, Any], file: dict[str, Any]) -> None:
    resolved = resolve({"model": "m", **flags}, {"model": "other", **file})
    written = resolved.spec.model_dump()
    for field in VALUES:
        source = "flag" if field in flags else "spec" if field in file else "default"
        assert resolved.sources[field] == source
        if source != "default":
            given_value = flags[field] if field in flags else file[field]
            one_alone = PrepSpec.model_validate({"model": "m", field: given_value}).model_dump()
            assert written[field] == one_alone[field]
    assert resolved.sources["model"] == "flag"
    assert resolved.source == "flags"
    assert set(resolved.sources) == set(PrepSpec.model_fields)


@given(SOME)
def test_a_spec_file_alone_is_the_source(file: dict[str, Any]) -> None:
    assert resolve({}, {"model": "m", **file}).source == "spec"
    assert resolve({"model": "m", **file}).source == "flags"


@given(SOME)
def test_a_request_survives_being_written_and_read(values: dict[str, Any]) -> None:
    spec = resolve({"model": "m", **values}).spec
    assert PrepSpec.model_validate_json(to_json(spec)) == spec


def test_ops_of_flags_and_file_are_merged_by_stage() -> None:
    resolved = resolve(
        {"model": "m", "ops": {StageName.INDUCTOR: StageOp.REBUILD}},
        {"ops": {"inductor": "skip", "flashinfer": "skip"}},
    )
    assert resolved.spec.op(StageName.INDUCTOR) is StageOp.REBUILD
    assert resolved.spec.op(StageName.FLASHINFER) is StageOp.SKIP
    assert resolved.spec.op(StageName.DEEP_GEMM) is StageOp.ENSURE
    assert resolved.sources["ops"] == "flag"


def test_ignored_keys_and_warnings_are_carried_along() -> None:
    resolved = resolve({"model": "m"}, {}, ("typo_key",), ("typo_key ignored",))
    assert (resolved.ignored_spec_keys, resolved.warnings) == (("typo_key",), ("typo_key ignored",))


def test_sizes_are_sorted_and_each_is_there_once() -> None:
    assert resolve({"model": "m", "batch_sizes": [8, 1, 8]}).spec.batch_sizes == (1, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tp", 0),
        ("tp", -1),
        ("tp", 1.5),
        ("tp", "many"),
        ("tp", None),
        ("batch_sizes", []),
        ("batch_sizes", [0]),
        ("batch_sizes", [1, -8]),
        ("batch_sizes", 8),
        ("batch_sizes", "1,8"),
        ("block_sizes", [0]),
        ("max_seq_len", 0),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("heartbeat_s", 0),
        ("heartbeat_s", float("inf")),
        ("warmup_port", 80),
        ("warmup_port", 65536),
        ("mem_fraction", 0),
        ("mem_fraction", 1),
        ("mem_fraction", float("nan")),
        ("device", "tpu"),
        ("slices", 0),
        ("slices", "every"),
        ("slices", True),
        ("slices", "٣" * 5000),
        ("moe_strategy", "greedy"),
        ("moe_dtype", "fp8\udcff"),
        ("model", ""),
        ("model", 7),
        ("model", "model-\udcff"),
        ("server_args", "--a=1"),
        ("server_args", ["--a", 1]),
        ("server_args", ["--a=\udcff"]),
        ("ops", {"moe": "ensure"}),
        ("ops", {"inductor": "tune"}),
        ("selected", ["nothing"]),
        ("unheard_of", 1),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_field(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        resolve({"model": "m", field: value})
    assert caught.value.line.startswith(field)
    assert len(caught.value.line.splitlines()) == 1
    assert caught.value.hint


def test_a_request_without_a_model_says_what_to_give() -> None:
    with pytest.raises(BadRequest, match="no model given") as caught:
        resolve({"tp": 2}, {"batch_sizes": [1]})
    assert "--model" in caught.value.hint


def architecture(heads: int = 8, kv_heads: int = 2, blocks: list[int] | None = None) -> Architecture:
    keys = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 100,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": blocks},
    }
    return parse_architecture(json.dumps({"model_type": "x", **keys}), "config.json")


def check(blocks: list[int] | None = None, /, **values: object) -> None:
    check_against_model(resolve({"model": "m", **values}).spec, architecture(blocks=blocks))


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_tp_that_divides_the_heads_is_taken(tp: int) -> None:
    check(tp=tp)


@pytest.mark.parametrize("tp", [3, 16])
def test_a_tp_that_does_not_divide_the_heads_is_refused(tp: int) -> None:
    with pytest.raises(BadRequest, match=f"tp {tp} does not divide the model's 8 attention heads"):
        check(tp=tp)


def test_a_tp_and_kv_heads_that_do_not_go_together_are_refused() -> None:
    spec = resolve({"model": "m", "tp": 4}).spec
    with pytest.raises(BadRequest, match="6 key-value heads"):
        check_against_model(spec, architecture(heads=24, kv_heads=6))


def test_a_block_size_has_to_be_the_models_own() -> None:
    check([128, 128], block_sizes=[128])
    with pytest.raises(BadRequest, match=r"--block-size 64 .*\[128, 128\]"):
        check([128, 128], block_sizes=[64, 128])
    with pytest.raises(BadRequest, match="not block-quantised"):
        check(block_sizes=[128])


def test_a_layout_in_the_server_arguments_is_refused_with_the_model() -> None:
    with pytest.raises(BadRequest, match="data parallel"):
        check(server_args=["--dp-size", "2"])
    with pytest.raises(BadRequest, match="contradicts --tp 1"):
        check(server_args=["--tp", "2"])


@pytest.mark.parametrize("name", ["server_args", "server_command"])
def test_a_server_that_would_speak_tls_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="plain HTTP"):
        check(**{name: ["--ssl-certfile", "/c", "--ssl-keyfile", "/k"]})


def test_a_server_command_has_one_port_and_so_one_slice() -> None:
    check(slices="all")
    check(server_command=["python", "server.py"], slices=1)
    with pytest.raises(BadRequest, match="slices 2 and a server command exclude each other"):
        check(server_command=["python", "server.py"], slices="2")


def test_the_strategy_and_lengths_have_defaults_of_their_own() -> None:
    spec = resolve({"model": "m"}).spec
    assert spec.moe_strategy is MoeStrategy.AUTO
    assert spec.seq_len == 512
    assert resolve({"model": "m", "max_seq_len": 64}).spec.seq_len == 64
