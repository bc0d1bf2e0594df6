"""Which FlashInfer modules a server needs: per kind of attention, backend and type."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.flashinfer_modules import FlashInferModule, flashinfer_modules, module_of

QWEN3_MOE = json.loads((Path(__file__).parents[1] / "gpu/models/qwen3-moe-fp8-4l/config.json").read_text())
DEEPSEEK_V3 = {
    **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16"},
    **{"hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "vocab_size": 129280},
    **{"num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "num_experts_per_tok": 8},
    **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
}
FLASHINFER = ("--attention-backend", "flashinfer")
FA3, FA2 = (
    "batch_prefill:fa3:bf16:bf16:bf16:i32:128:128:0:0:0:0",
    "batch_prefill:fa2:bf16:bf16:bf16:i32:128:128:0:0:0:0",
)
DECODE = "batch_decode:bf16:bf16:bf16:i32:128:128:0:0:0"
MLA, MLA_RAGGED = "batch_mla:fa3:bf16:bf16:bf16:i32:512:64:0", "batch_prefill:fa3:bf16:bf16:bf16:i32:192:128:0:0:0:0"


def model(base: dict[str, object], **changes: object) -> Architecture:
    return parse_architecture(json.dumps({**base, **changes}), "config.json")


def units(architecture: Architecture, *server_args: str, tp: int = 1) -> list[str]:
    return [str(module) for module in flashinfer_modules(architecture, tp, server_args)]


def attention(architecture: Architecture, *server_args: str, tp: int = 1) -> list[str]:
    others = ("norm", "sampling", "dsv3_fused_routing", "trtllm_comm", "trtllm_mnnvl_comm")
    return [unit for unit in units(architecture, *server_args, tp=tp) if unit not in others]


def test_gqa_on_flashinfer_as_measured_on_an_h200() -> None:
    assert units(model(QWEN3_MOE), *FLASHINFER) == [FA3, "sampling", FA2, "cascade", "norm"]


def test_a_generator_is_called_as_flashinfer_calls_it() -> None:
    first = flashinfer_modules(model(QWEN3_MOE), 1, FLASHINFER)[0]
    dtypes = ("bfloat16", "bfloat16", "bfloat16", "int32")
    args = ("fa3", *dtypes, 128, 128, 0, False, False, False)
    assert first == FlashInferModule(generator="gen_batch_prefill_module", args=args)
    assert FlashInferModule.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize("base", [QWEN3_MOE, DEEPSEEK_V3])
def test_the_default_on_hopper_attends_without_flashinfer(base: dict[str, object]) -> None:
    assert attention(model(base)) == []
    assert units(model(base))[:2] == ["sampling", "norm"]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp", "decodes_by"),
    [(32, 8, 1, FA2), (24, 8, 1, DECODE), (32, 32, 1, DECODE), (32, 4, 8, FA2), (32, 16, 8, DECODE), (8, 1, 4, DECODE)],
)
def test_few_heads_a_group_decode_without_tensor_cores(heads: int, kv_heads: int, tp: int, decodes_by: str) -> None:
    gqa = model(QWEN3_MOE, num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert attention(gqa, "--decode-attention-backend", "flashinfer", tp=tp) == [decodes_by]


def test_a_cache_in_fp8_is_read_by_fa2_on_tensor_cores() -> None:
    mha = model(QWEN3_MOE, num_key_value_heads=32)
    e4m3 = FA2.replace("bf16:bf16:bf16", "bf16:e4m3:bf16")
    assert attention(mha, *FLASHINFER, "--kv-cache-dtype=fp8_e4m3") == [FA3, e4m3, "cascade"]


@pytest.mark.parametrize(
    ("server_args", "expected"),
    [
        (("--prefill-attention-backend", "flashinfer"), [FA3, FA2, "cascade"]),
        ((*FLASHINFER, "--decode-attention-backend", "fa3"), [FA3, FA2, "cascade"]),
        ((*FLASHINFER, "--prefill-attention-backend=fa3"), [FA2]),
        ((*FLASHINFER, "--attention-backend=triton"), []),
        (("--attention-b=flashinfer",), [FA3, FA2, "cascade"]),
        (("--speculative-eagle-topk", "4"), [FA3, FA2, "cascade"]),
        (("--speculative-eagle-topk", "1"), []),
        ((*FLASHINFER, "--enable-deterministic-inference"), [FA2]),
        ((*FLASHINFER, "--kv-cache-dtype", "nvfp4"), []),
        ((*FLASHINFER, "--dtype", "half"), [FA3.replace("bf16", "f16"), FA2.replace("bf16", "f16"), "cascade"]),
    ],
)
def test_server_arguments_choose_the_backend(server_args: tuple[str, ...], expected: list[str]) -> None:
    assert attention(model(QWEN3_MOE), *server_args) == expected


def test_many_heads_are_merged_by_triton() -> None:
    assert "cascade" in attention(model(QWEN3_MOE, num_attention_heads=64), *FLASHINFER)
    assert "cascade" not in attention(model(QWEN3_MOE, num_attention_heads=96), *FLASHINFER)
    assert "cascade" in attention(model(QWEN3_MOE, num_attention_heads=96), *FLASHINFER, tp=2)


@pytest.mark.parametrize(
    ("server_args", "expected"),
    [
        (FLASHINFER, [MLA_RAGGED, MLA]),
        ((*FLASHINFER, "--kv-cache-dtype", "fp8_e4m3"), [MLA_RAGGED, MLA]),
        ((*FLASHINFER, "--flashinfer-mla-disable-ragged"), [MLA]),
        (("--decode-attention-backend", "flashinfer"), [MLA]),
    ],
)
def test_mla_has_modules_of_its_own(server_args: tuple[str, ...], expected: list[str]) -> None:
    assert attention(model(DEEPSEEK_V3), *server_args, tp=8) == expected


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"torch_dtype": "torch.float16"}, "auto", "f16"),
        ({"torch_dtype": "float32"}, "auto", "f16"),
        ({"torch_dtype": "float32", "model_type": "gemma2"}, "auto", "bf16"),
        ({"torch_dtype": "float16"}, "bfloat16", "bf16"),
    ],
)
def test_the_type_is_the_one_that_sglang_computes_in(config: dict[str, object], asked: str, expected: str) -> None:
    assert units(model(QWEN3_MOE, **config), *FLASHINFER, "--dtype", asked)[0].split(":")[2] == expected


@pytest.mark.parametrize(
    "server_args",
    [("--dtype", "float32", "--sampling-backend", "pytorch"), ("--enable-deterministic-inference",)],
)
def test_a_server_may_need_none(server_args: tuple[str, ...]) -> None:
    assert units(model(QWEN3_MOE), *server_args) == []


@pytest.mark.parametrize(
    ("server_args", "tp", "expected"),
    [
        ((), 1, []),
        ((), 2, ["trtllm_comm"]),
        (("--enforce-disable-flashinfer-allreduce-fusion",), 2, []),
        (("--flashinfer-allreduce-fusion-backend", "mnnvl"), 2, ["trtllm_mnnvl_comm"]),
        (("--flashinfer-allreduce-fusion-backend", "auto"), 2, ["trtllm_comm"]),
        (("--flashinfer-allreduce-fusion-backend", "cutedsl"), 2, []),
        (("--enable-deterministic-inference",), 2, []),
    ],
)
def test_all_reduce_is_fused_above_tp_1(server_args: tuple[str, ...], tp: int, expected: list[str]) -> None:
    assert [unit for unit in units(model(QWEN3_MOE), *server_args, tp=tp) if unit.endswith("comm")] == expected


@pytest.mark.parametrize(
    ("family", "version", "fused"),
    [
        ("Qwen3MoeForCausalLM", None, True),
        ("Qwen3MoeForCausalLM", "0.5.23", True),
        ("DeepseekV4ForCausalLM", "0.5.17", False),
        ("DeepseekV4ForCausalLM", "0.5.18", True),
        ("Qwen4ExpForConditionalGeneration", "0.5.19", False),
        ("Qwen4ExpForConditionalGeneration", "0.5.20", True),
        ("NemotronH_Omni_Reasoning_V3", None, False),
        ("NemotronH_Omni_Reasoning_V3", "0.5.23", True),
        ("LlamaForCausalLM", "0.5.23", False),
    ],
)
def test_all_reduce_is_fused_for_more_models_by_and_by(family: str, version: str | None, fused: bool) -> None:
    modules = flashinfer_modules(model(QWEN3_MOE, architectures=[family]), 2, (), version=version)
    assert ("gen_trtllm_comm_module" in {module.generator for module in modules}) is fused


def test_the_router_of_deepseek_v3() -> None:
    assert "dsv3_fused_routing" in units(model(DEEPSEEK_V3))
    assert "dsv3_fused_routing" not in units(model(DEEPSEEK_V3, n_routed_experts=384))
    assert "dsv3_fused_routing" not in units(model(QWEN3_MOE))


@given(
    st.sampled_from([QWEN3_MOE, DEEPSEEK_V3]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["fa3", "flashinfer", "triton"]),
    st.sampled_from(["fa3", "flashinfer", "triton"]),
    st.sampled_from(["auto", "fp8_e4m3", "fp8_e5m2", "bf16"]),
)
def test_no_unit_is_named_twice(base: dict[str, object], tp: int, prefill: str, decode: str, kv: str) -> None:
    backends = (f"--prefill-attention-backend={prefill}", f"--decode-attention-backend={decode}")
    found = units(model(base), *backends, f"--kv-cache-dtype={kv}", tp=tp)
    assert len(found) == len(set(found))
    assert bool(attention(model(base), *backends)) == ("flashinfer" in (prefill, decode))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm/norm.so", "norm"),
        (".cache/flashinfer/0.6.14/90a/cached_ops/norm", "norm"),
        ("/profiles/flashinfer/.cache/flashinfer/0.6.14/90a/generated/batch_x_sm90/kernel.cu", "batch_x_sm90"),
        ("flashinfer/.cache/flashinfer/0.6.14/90a/generated/silu_and_mul.cu", "silu_and_mul"),
        ("flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/tmp/norm.lock", None),
        ("flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/.ninja_log", None),
        ("flashinfer/.cache/flashinfer/0.6.14/90a/flashinfer_jit.log", None),
        ("flashinfer/.cache/flashinfer/cubins/abc/kernel.cubin", None),
        ("triton/KEY/norm.so", None),
    ],
)
def test_a_file_names_its_module(path: str, name: str | None) -> None:
    assert module_of(path) == name
