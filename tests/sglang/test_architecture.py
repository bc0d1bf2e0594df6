"""The widths of a model, from its config.json and its defaults."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rayprep
from rayprep.base.errors import BadRequest
from rayprep.sglang.architecture import Architecture, Width, WidthMissing, config_digest, parse_architecture
from rayprep.sglang.gemm_shapes import gemm_shapes
from rayprep.sglang.moe_shape import UnknownKernel, moe_shape

TINY = json.loads((Path(rayprep.__file__).parent / "configs/tiny-dense/config.json").read_text(encoding="utf-8"))
MOE = {
    **{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
    **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}
WIDTHS: tuple[Width, ...] = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
)


def parse(**changes: object) -> Architecture:
    keys = {name: value for name, value in {**TINY, **changes}.items() if value != "LEFT OUT"}
    return parse_architecture(json.dumps(keys), "config.json")


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe"])
def test_the_shipped_models_are_read(name: str) -> None:
    path = Path(rayprep.__file__).parent / "configs" / name / "config.json"
    found = parse_architecture(path.read_text(encoding="utf-8"), str(path))
    assert found.is_moe == (name == "tiny-moe")


@pytest.mark.parametrize("absent", [None, "LEFT OUT"])
def test_what_configs_leave_out_or_null_is_as_transformers_has_it(absent: object) -> None:
    found = parse(num_key_value_heads=absent, head_dim=absent, num_attention_heads=4, hidden_size=64)
    assert (found.num_key_value_heads, found.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}, (8, 2, 64)),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}, (8, 2, 64)),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, (8, 2, None)),
        ({"num_experts": 8, "num_experts_per_tok": [2, 2], "moe_intermediate_size": [64, 64]}, (8, 2, 64)),
    ],
    ids=["qwen", "deepseek", "mixtral", "a list"],
)
def test_experts_by_each_of_their_names(keys: dict[str, object], sizes: tuple[int, int, int | None]) -> None:
    found = parse(**keys)
    assert (found.num_experts, found.num_experts_per_tok, found.moe_intermediate_size) == sizes
    assert (found.is_moe, found.experts_unread) == (True, "")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"number_of_experts": 8}, "'number_of_experts'"),
        ({"text": {"experts": {"count": 8}}}, "'experts'"),
        ({"num_experts_per_tok": 8}, "'num_experts_per_tok'"),
        ({"num_experts": 8}, "how many experts a token goes to"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "a token goes to 9 experts, and there are 8"),
        ({**MOE, "expert_dtype": 5}, "its expert_dtype says 5"),
        ({**MOE, "n_shared_experts": [1, 2]}, "its n_shared_experts has one for each layer"),
        ({"num_experts": -8, "num_experts_per_tok": 2}, "its num_experts says -8"),
        ({"num_experts": 8, "num_experts_per_tok": [2, 1]}, "its num_experts_per_tok has one for each layer"),
        ({"moe_num_experts": 8, "moe_k": 2}, "'moe_num_experts'"),
        ({"ffn_config": {"moe_num_experts": 8}}, "'moe_num_experts'"),
    ],
)
def test_experts_that_cannot_be_read_are_not_taken_for_none(keys: dict[str, object], why: str) -> None:
    assert why in parse(**keys).experts_unread


@pytest.mark.parametrize("keys", [{}, {"num_experts": 0, "num_experts_per_tok": 2}, {"expert_bias": False}])
def test_a_dense_model_may_speak_of_experts(keys: dict[str, object]) -> None:
    assert (parse(**keys).is_moe, parse(**keys).experts_unread) == (False, "")


@pytest.mark.parametrize("name", ["text_config", "llm_config", "language_config", "thinker_config"])
def test_a_multimodal_config_is_read_by_its_language_model(name: str) -> None:
    inner = {name: TINY[name] for name in WIDTHS}
    outer = {name: value for name, value in TINY.items() if name not in WIDTHS}
    vision = {"vision_config": {"hidden_size": 7}}
    found = parse_architecture(json.dumps({**outer, **vision, name: inner}), "config.json")
    assert found.hidden_size == TINY["hidden_size"]
    deeper = {**outer, **vision, name: {"model_type": "x", "text_config": inner}}
    assert parse_architecture(json.dumps(deeper), "config.json").hidden_size == TINY["hidden_size"]


def test_block_quantisation_is_found() -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "unknown": 1}
    assert parse(quantization_config=quantised).weight_block_size == (128, 128)
    assert parse(quantization_config="LEFT OUT").weight_block_size is None


@pytest.mark.parametrize("width", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [-1, "wide", 1.5, 10**30])
def test_a_wrong_width_that_every_model_has_is_one_line_that_names_it(width: str, value: object) -> None:
    with pytest.raises(BadRequest, match=width) as caught:
        parse(**{width: value})
    assert caught.value.line.startswith("model config config.json cannot be read")


NOT_ALL_HAVE = (
    *("intermediate_size", "head_dim", "num_key_value_heads", "moe_intermediate_size", "v_head_dim", "q_lora_rank"),
    *("kv_lora_rank", "qk_rope_head_dim", "moe_layer_freq", "decoder_sparse_step", "mlp_only_layers"),
    *("rope_theta", "rms_norm_eps", "max_position_embeddings", "first_k_dense_replace", "expert_dtype", "torch_dtype"),
)


@pytest.mark.parametrize("key", NOT_ALL_HAVE)
@pytest.mark.parametrize("value", [{"a": 1}, [[1], 2], -1.5, [], [None, 3]])
def test_a_key_that_not_every_model_has_is_read_or_told_and_never_refused(key: str, value: object) -> None:
    found = parse(**{key: value})
    name = "dtype" if key == "torch_dtype" else key
    if key in found.unread:
        assert getattr(found, name) == getattr(Architecture(), name)
    else:
        assert getattr(found, name) == (tuple(value) if isinstance(value, list) else value)
    assert found.hidden_size == TINY["hidden_size"]


@pytest.mark.parametrize("key", ["v_head_dim", "q_lora_rank", "kv_lora_rank", "intermediate_size", "hidden_size"])
def test_a_model_may_have_none_of_something(key: str) -> None:
    found = parse(**{key: 0})
    assert (getattr(found, key), found.unread) == (None, {key: "says 0"})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"weight_block_size": block} for block in ([0, 128], [128, -1], 128, "128")),
        *({"modules_to_not_convert": "abc"}, {"config_groups": 1}),
    ],
)
def test_a_quantisation_that_cannot_be_read_is_one_that_nothing_knows(wrong: dict[str, object]) -> None:
    found = parse(quantization_config={"quant_method": "fp8", **wrong})
    assert gemm_shapes(found, 1, ()) is None
    moe = parse(**{**MOE, "quantization_config": {"quant_method": "fp8", **wrong}})
    assert moe_shape(moe, 1, ()) == UnknownKernel(message="the MoE kernel of unreadable weights")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "say it"), ("LEFT OUT", "say it"), ([1, 2], "one for each layer"), (0, "says 0")],
)
def test_a_width_that_is_not_there_is_missed_where_it_is_needed(width: Width, value: object, why: str) -> None:
    found = parse(**{width: value})
    with pytest.raises(WidthMissing, match=f"{width}.*{why}"):
        found.width(width)
    assert parse(**{width: [64, 64]}).width(width) == 64


def test_a_number_without_end_is_read_as_transformers_writes_it() -> None:
    text = json.dumps({**TINY, "time_step_limit": [0.0, float("inf")]})
    assert "Infinity" in text
    assert parse_architecture(text, "config.json").hidden_size == TINY["hidden_size"]
    assert config_digest(text) != config_digest(json.dumps(TINY))


@pytest.mark.parametrize("key", ["moe_layer_freq", "rms_norm_eps", "sliding_window", "head_dim"])
def test_a_list_where_other_models_have_a_number_is_no_number(key: str) -> None:
    assert (key in parse(**{key: [1, 2]}).unread) is (key != "sliding_window"), "which is not read at all"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "[" * 10_000, "{}", "\ufeff{}"])
def test_what_is_no_config_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_architecture(text, "config.json")
    assert len(caught.value.line.splitlines()) == 1


@given(st.permutations(list(TINY)), st.sampled_from([None, 2, "\t"]))
def test_the_digest_does_not_depend_on_order_or_white_space(order: list[str], indent: str | int | None) -> None:
    text = json.dumps({key: TINY[key] for key in order}, indent=indent)
    assert config_digest(text) == config_digest(json.dumps(TINY))


def test_the_digest_depends_on_every_value() -> None:
    assert config_digest(json.dumps({**TINY, "hidden_act": "other"})) != config_digest(json.dumps(TINY))
    assert config_digest(json.dumps(TINY)).startswith("sha256:")
