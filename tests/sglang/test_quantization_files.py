"""How a model's weights are stored, as SGLang finds it out: in its config, or in a file beside it."""

import json

import pytest

from rayprep.sglang.architecture import QUANTIZATION_FILES, Architecture, config_digest, parse_architecture
from rayprep.sglang.moe_shape import MoeShape, NoTritonKernel, UnknownKernel, moe_shape

MODEL = {
    **{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144},
    **{"num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 1000},
    **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "torch_dtype": "bfloat16"},
}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


def read(beside: dict[str, object] | None = None, **changes: object) -> Architecture:
    files = {name: json.dumps(content) for name, content in (beside or {}).items()}
    return parse_architecture(json.dumps({**MODEL, **changes}), "a test", files)


def exported(algo: object, **more: object) -> dict[str, object]:
    """As modelopt lays an export out."""
    return {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo, **more}}}


@pytest.mark.parametrize(
    ("algo", "method"),
    [
        ("FP8", "modelopt_fp8"),
        ("FP8_PER_CHANNEL_PER_TOKEN", "modelopt_fp8"),
        ("NVFP4", "modelopt_fp4"),
        ("W4A8_AWQ", None),
        (None, None),
    ],
)
def test_an_export_says_it_beside_the_config_or_in_it(algo: object, method: str | None) -> None:
    for model in (read(exported(algo)), read(quantization_config={"quant_method": "modelopt", "quant_algo": algo})):
        found = model.quantization.quant_method if model.quantization else None
        assert found in ((method,) if method else (None, "modelopt"))


@pytest.mark.parametrize(("kind", "method"), [("NVFP4", "modelopt_mixed"), ("W4A8_FP8", "w4afp8")])
def test_a_mixed_export_goes_by_its_layers(kind: str, method: str) -> None:
    layers = {"quantized_layers": {"model.layers.0": {"quant_algo": kind}, "odd": None}}
    quantization = read(exported("MIXED_PRECISION", **layers)).quantization
    assert quantization is not None
    assert quantization.quant_method == method


def test_what_the_config_says_wins() -> None:
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = read(exported("NVFP4"), quantization_config=blocks)
    assert model.weight_block_size == (128, 128)


def test_experts_of_an_export_are_tuned_as_they_run() -> None:
    shape = moe_shape(read(exported("FP8")), 1, ())
    assert isinstance(shape, MoeShape)
    assert (shape.dtype, shape.block, shape.per_channel) == ("fp8_w8a8", None, False)
    assert isinstance(moe_shape(read(exported("NVFP4")), 1, ()), NoTritonKernel)


def test_an_older_compressor_names_its_key_otherwise() -> None:
    shape = moe_shape(read(compression_config=CHANNEL), 1, ())
    assert isinstance(shape, MoeShape)
    assert (shape.dtype, shape.per_channel) == ("fp8_w8a8", True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"quantization": 3}', '{"quantization": {"quant_algo": {}}}', "[" * 10**5]
)
def test_a_file_that_says_nothing_is_no_quantisation(text: str) -> None:
    model = parse_architecture(json.dumps(MODEL), "a test", {"hf_quant_config.json": text})
    assert model.quantization is None
    assert config_digest(json.dumps(MODEL), {"hf_quant_config.json": text}) != config_digest(json.dumps(MODEL))


def test_experts_that_an_export_leaves_out_are_left_to_the_server() -> None:
    assert isinstance(moe_shape(read(exported("FP8", exclude_modules=["*mlp.experts*"])), 1, ()), UnknownKernel)
    assert isinstance(moe_shape(read(exported("FP8", exclude_modules=["lm_head"])), 1, ()), MoeShape)


@pytest.mark.parametrize("method", ["FP8", "Fp8", "fp8"])
def test_a_method_is_known_in_any_case(method: str) -> None:
    shape = moe_shape(read(quantization_config={"quant_method": method, "weight_block_size": [128, 128]}), 1, ())
    assert isinstance(shape, MoeShape)
    assert shape.block == (128, 128)


@pytest.mark.parametrize("inner", [None, {"quant_method": "gptq"}])
def test_of_a_model_with_a_language_model_within_its_own_word_counts(inner: object) -> None:
    own = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = read(quantization_config=own, text_config={"quantization_config": inner, "torch_dtype": None})
    assert (model.weight_block_size, model.dtype) == ((128, 128), "bfloat16")
    text = read(text_config={"quantization_config": own})
    assert text.weight_block_size == (128, 128)


def test_mlx_has_a_key_that_sglang_does_not_read() -> None:
    model = read(exported("FP8"), quantization={"group_size": 64, "bits": 4})
    assert model.quantization is not None
    assert model.quantization.quant_method == "modelopt_fp8"


@pytest.mark.parametrize("odd", [[], "fp8", 3])
def test_a_key_that_is_no_object_refuses_no_model(odd: object) -> None:
    assert read(compression_config=odd, text_config=odd).quantization is None


def test_a_model_is_the_same_on_a_host_that_has_fetched_more_of_it() -> None:
    config = json.dumps({**MODEL, "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}})
    assert config_digest(config, {"hf_quant_config.json": "{}"}) == config_digest(config)


@pytest.mark.parametrize("name", QUANTIZATION_FILES)
def test_two_exports_of_one_config_are_two_models(name: str) -> None:
    config = json.dumps(MODEL)
    digests = {config_digest(config, files) for files in ({}, {name: '{"bits": 4}'}, {name: '{"bits": 8}'})}
    assert len(digests) == 3
    assert config_digest(config, {name: '{"a": 1, "b": 2}'}) == config_digest(config, {name: '{ "b": 2, "a": 1 }'})


def test_the_digest_of_a_config_alone_is_what_it_was() -> None:
    assert config_digest('{"b": 1, "a": [1, 2]}') == (
        "sha256:94a786c3662bc7beeb598efa7d8cb58d7bea25d6c275ea9785a0230ff1f8c2ba"
    )
