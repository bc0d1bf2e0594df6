"""Which MoE kernel a model runs, and for which batches it is tuned."""

import json
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.sglang.architecture import Architecture, WidthMissing, parse_architecture
from rayprep.sglang.moe_shape import MoeShape, NoTritonKernel, UnknownKernel, default_batch_sizes, moe_shape

MODELS = Path(__file__).parents[1] / "gpu" / "models"
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
PER_CHANNEL = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


def model(**changes: object) -> Architecture:
    values = {
        **{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144},
        **{"num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 1000},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "torch_dtype": "bfloat16"},
        **changes,
    }
    return parse_architecture(json.dumps(values), "a test")


def known(**changes: object) -> MoeShape:
    found = moe_shape(model(**changes), 1, ())
    assert isinstance(found, MoeShape), found
    return found


def test_the_shape_of_a_rank_is_the_one_in_the_file_name() -> None:
    architecture = parse_architecture((MODELS / "qwen3-moe-fp8-4l" / "config.json").read_text(), "qwen3")
    whole, half = (moe_shape(architecture, tp, ()) for tp in (1, 2))
    assert str(whole) == "E=128 N=768 K=2048 topk=8 fp8_w8a8 128x128"
    assert str(half) == "E=128 N=384 K=2048 topk=8 fp8_w8a8 128x128"


def test_a_shared_expert_that_is_fused_is_one_more_and_every_token_goes_there() -> None:
    deepseek = {"architectures": ["DeepseekV3ForCausalLM"], "num_experts": 256, "n_shared_experts": 1}
    fused, apart = known(**deepseek), moe_shape(model(**deepseek), 1, ("--disable-shared-experts-fusion",))
    assert (fused.experts, fused.top_k, fused.shared) == (257, 9, 1)
    assert isinstance(apart, MoeShape)
    assert (apart.experts, apart.top_k, apart.shared) == (256, 8, 0)


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (None, "bfloat16"),
        ({"quant_method": "fp8"}, "fp8_w8a8"),
        (BLOCKS, "fp8_w8a8 128x128"),
        (PER_CHANNEL, "fp8_w8a8 per_channel"),
    ],
)
def test_the_types_that_are_known(quantization: object, said: str) -> None:
    assert str(known(quantization_config=quantization)) == f"E=128 N=768 K=2048 topk=8 {said}"


def test_mixtral_says_its_width_otherwise() -> None:
    mixtral = {"num_experts": None, "num_local_experts": 8, "moe_intermediate_size": None, "num_experts_per_tok": 2}
    assert str(known(**mixtral)) == "E=8 N=6144 K=2048 topk=2 bfloat16"


@pytest.mark.parametrize(
    ("changes", "flags", "reason"),
    [
        ({"num_experts": 0}, (), "dense_model"),
        ({}, ("--moe-runner-backend=deep_gemm",), "no_triton_moe"),
        ({"quantization_config": {"quant_method": "awq"}}, (), "no_triton_moe"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, (), "no_triton_moe"),
        ({}, ("--enable-deterministic-inference",), "deterministic"),
    ],
)
def test_what_reads_no_such_config_needs_none(changes: dict[str, object], flags: tuple[str, ...], reason: str) -> None:
    found = moe_shape(model(**changes), 1, flags)
    assert isinstance(found, NoTritonKernel)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("changes", "tp", "said"),
    [
        ({"quantization_config": {"quant_method": "w8a8_int8"}}, 1, "w8a8_int8"),
        ({"num_experts_per_tok": None}, 1, "how many experts a token goes to"),
        ({"num_experts": None, "strange_experts": 8}, 1, "'num_experts_per_tok'"),
        ({"moe_intermediate_size": 700}, 8, "700"),
        ({"quantization_config": BLOCKS}, 4, "768 over tp 4 is no multiple of the weights' block 128x128"),
    ],
)
def test_what_is_not_known_is_refused_by_name(changes: dict[str, object], tp: int, said: str) -> None:
    found = moe_shape(model(**changes), tp, ())
    assert isinstance(found, UnknownKernel)
    assert said in found.message


@pytest.mark.parametrize(
    ("changes", "flags", "computed"),
    [
        ({"torch_dtype": "float32"}, (), "float16"),
        ({"torch_dtype": None}, (), "float16"),
        ({"torch_dtype": None, "model_type": "gemma4"}, (), "bfloat16"),
        ({"torch_dtype": "float32", "model_type": "gemma4"}, (), "bfloat16"),
        ({"torch_dtype": "bfloat16"}, ("--dtype", "half"), "float16"),
        ({"torch_dtype": "bfloat16"}, ("--dty=Half", "--dtype=auto"), "bfloat16"),
    ],
)
def test_the_kernel_computes_in_what_the_server_does(
    changes: dict[str, object], flags: tuple[str, ...], computed: str
) -> None:
    assert moe_shape(model(**changes), 1, flags) == known().model_copy(update={"activation": computed})


def test_no_kernel_is_known_for_single_precision() -> None:
    found = moe_shape(model(), 1, ("--dtype", "float"))
    assert isinstance(found, UnknownKernel)
    assert "float32" in found.message


def test_an_abbreviated_runner_is_heard() -> None:
    found = moe_shape(model(), 1, ("--moe-runner", "deep_gemm"))
    assert isinstance(found, NoTritonKernel)
    assert found.reason == "no_triton_moe"


def test_the_users_type_must_be_the_models() -> None:
    assert moe_shape(model(quantization_config=BLOCKS), 1, (), "fp8_w8a8") == known(quantization_config=BLOCKS)
    with pytest.raises(BadRequest, match="moe dtype fp8_w8a8 is not the model's, which is bf16"):
        moe_shape(model(), 1, (), "fp8_w8a8")


@pytest.mark.parametrize(
    ("flags", "last"),
    [
        ((), (128, 256, 512, 1024, 2048, 4096, 8192)),
        (("--cuda-graph-max-bs=48", "--chunked-prefill-size=1000"), (32, 48, 64, 128, 256, 512, 1000)),
        (("--chunked-prefill-size=-1",), (2048, 4096, 8192)),
        (("--cuda-graph-max-bs-decode", "16", "--chunked-prefill-size", "8"), (4, 8, 16)),
    ],
)
def test_sizes_reach_from_one_token_to_a_prefill_chunk(flags: tuple[str, ...], last: tuple[int, ...]) -> None:
    sizes = default_batch_sizes(flags)
    assert sizes[:3] == (1, 2, 4)
    assert sizes[-len(last) :] == last


@pytest.mark.parametrize(
    ("changes", "flags", "sizes"),
    [
        ({"architectures": ["Glm4MoeForCausalLM"], "n_shared_experts": 1}, (), (129, 9, 1)),
        (
            {"architectures": ["Glm4MoeForCausalLM"], "n_shared_experts": 1},
            ("--disable-shared-experts-fusion",),
            (128, 8, 0),
        ),
        ({"architectures": ["Qwen3NextForCausalLM"], "shared_expert_intermediate_size": 768}, (), (129, 9, 1)),
        ({"architectures": ["Qwen3NextForCausalLM"], "shared_expert_intermediate_size": 512}, (), (128, 8, 0)),
        ({"architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 768}, (), (128, 8, 0)),
        ({"architectures": ["DeepseekV2ForCausalLM"], "n_shared_experts": 1}, (), (128, 8, 0)),
    ],
)
def test_shared_experts_that_run_as_routed_ones(
    changes: dict[str, object], flags: tuple[str, ...], sizes: tuple[int, int, int]
) -> None:
    found = moe_shape(model(**changes), 1, flags)
    assert isinstance(found, MoeShape)
    assert (found.experts, found.top_k, found.shared) == sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["NemotronHForCausalLM"], "moe_latent_size": 1024},
        {"architectures": ["SomethingNewForCausalLM"]},
        {"architectures": [], "model_type": "new"},
        {"quantization_config": BLOCKS, "expert_dtype": "fp4"},
        {"quantization_config": {**BLOCKS, "moe_quant_algo": "NVFP4"}},
        {"quantization_config": {**BLOCKS, "store_dtype": "mxfp4"}},
    ],
)
def test_what_no_table_has_is_not_like_any_other(changes: dict[str, object]) -> None:
    assert isinstance(moe_shape(model(**changes), 1, ()), UnknownKernel)


def test_a_width_that_is_missing_is_missed_only_where_it_is_needed() -> None:
    assert isinstance(moe_shape(model(num_attention_heads=None, vocab_size=None), 1, ()), MoeShape)
    with pytest.raises(WidthMissing, match="hidden_size"):
        moe_shape(model(hidden_size=None), 1, ())
