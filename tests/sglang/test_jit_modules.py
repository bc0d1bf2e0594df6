"""Which of SGLang's own modules are built ahead: per kind of model, held against what real servers built."""

import json
from pathlib import Path

import pytest

from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.jit_functions import JitModule
from rayprep.sglang.jit_modules import JitLine, jit_modules, left_to_the_server
from rayprep.sglang.releases import NEWEST, READ

MODELS = Path(__file__).parents[1] / "gpu/models"
QWEN3_MOE, LLAMA = "qwen3-moe-fp8-4l", "llama-fp8-2l"
V3, V2_LITE = "deepseek-v3-fp8-4l", "deepseek-v2-lite-fp8-2l"
ALWAYS = {
    "activation_bf16_t_true",
    "clamp_position_int64_t",
    "per_token_group_quant_8bit_v2_bf16_t_fp8_e4m3_t_true",
}
ROPE, ROPE_MLA, QK_NORM = "fused_rope_true_128_true_bf16_t", "fused_rope_false_64_true_bf16_t", "qknorm_128_true_bf16_t"
LATENT = "set_mla_kv_buffer_1024_128_1024_128_true"


def model(name: str, **changes: object) -> Architecture:
    config = json.loads((MODELS / name / "config.json").read_text())
    return parse_architecture(json.dumps({**config, **changes}), name)


def names(architecture: Architecture, *server_args: str, tp: int = 1) -> set[str]:
    found = [module.name for module in jit_modules(architecture, tp, server_args, READ)]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize(
    ("name", "backend", "recorded"),
    [
        (QWEN3_MOE, "flashinfer", {ROPE, QK_NORM}),
        (LLAMA, "triton", {ROPE, "kvcache_2048_true"}),
        (V3, "flashinfer", {ROPE_MLA, LATENT, "concat_mla_k"}),
        (V2_LITE, "flashinfer", {ROPE_MLA, LATENT}),
    ],
)
def test_what_servers_built_on_an_h200(name: str, backend: str, recorded: set[str]) -> None:
    assert names(model(name), "--attention-backend", backend) == ALWAYS | recorded


def test_a_function_is_called_as_sglang_calls_it() -> None:
    modules = {module.name: module for module in jit_modules(model(V3), 1, (), READ)}
    latent = modules[LATENT]
    assert (latent.module, latent.function) == (
        "sglang.jit_kernel.set_mla_kv_buffer",
        "_jit_set_mla_kv_buffer_module",
    )
    assert latent.args == (1024, 128, "pdl")
    assert modules[ROPE_MLA].args == (False, 64, "bfloat16")
    assert JitModule.model_validate_json(modules[ROPE_MLA].model_dump_json()) == modules[ROPE_MLA]


@pytest.mark.parametrize(("name", "layouts"), [(LLAMA, ["false"]), (QWEN3_MOE, ["false", "true"])])
def test_experts_have_a_quantisation_of_their_own_since_scales_have_a_layout(name: str, layouts: list[str]) -> None:
    listed = [module.name for module in jit_modules(model(name), 1, (), NEWEST)]
    start = "per_token_group_quant_bf16_t_fp8_e4m3_t_128_false"
    assert [module for module in listed if module.startswith("per_token")] == [
        f"{start}_{row_major}_true_false_true_flat" for row_major in layouts
    ]


@pytest.mark.parametrize(
    ("name", "tp", "server_args", "row"),
    [
        (LLAMA, 2, (), 1024),
        (LLAMA, 16, (), 256),
        (LLAMA, 1, ("--kv-cache-dtype=fp8_e4m3",), 1024),
        (LLAMA, 1, ("--kv-cache-dtype", "fp4_e2m1"), None),
        (QWEN3_MOE, 1, ("--kv-cache-dtype", "bf16"), None),
        (QWEN3_MOE, 1, ("--kv-cache-dtype", "fp8_e5m2"), 512),
        (QWEN3_MOE, 1, ("--dtype", "float16"), 1024),
    ],
)
def test_the_row_of_keys_that_is_written(name: str, tp: int, server_args: tuple[str, ...], row: int | None) -> None:
    found = {each for each in names(model(name), *server_args, tp=tp) if each.startswith("kvcache")}
    assert found == ({f"kvcache_{row}_true"} if row else set())


@pytest.mark.parametrize("server_args", [("--enable-deterministic-inference",), ("--enable-fused-qk-norm-rope",)])
def test_a_norm_that_another_kernel_does_is_not_listed(server_args: tuple[str, ...]) -> None:
    assert QK_NORM in names(model(QWEN3_MOE))
    assert QK_NORM not in names(model(QWEN3_MOE), *server_args)


@pytest.mark.parametrize(("tp", "server_args"), [(8, ()), (1, ("--flashinfer-mla-disable-ragged",))])
def test_only_128_heads_that_are_not_absorbed_have_their_keys_joined(tp: int, server_args: tuple[str, ...]) -> None:
    assert "concat_mla_k" not in names(model(V3), *server_args, tp=tp)


def test_types_and_widths_are_the_models() -> None:
    half = model("qwen2-fp8-2l", torch_dtype="float16", quantization_config=None, head_dim=80)
    assert names(half) == {"activation_fp16_t_true", "clamp_position_int64_t", f"kvcache_{4 * 80 * 2}_true"}


@pytest.mark.parametrize("changes", [{"model_type": "gpt_oss"}, {"torch_dtype": "float64"}])
def test_of_what_is_not_known_nothing_is_listed(changes: dict[str, object]) -> None:
    assert jit_modules(model(LLAMA, **changes), 1, (), READ) == ()


def test_what_was_left_is_one_warning() -> None:
    modules = jit_modules(model(V2_LITE), 1, (), READ)
    built = [JitLine(name=module.name, seconds=1.0) for module in modules]
    assert left_to_the_server(modules, built, "") == ()
    failed = built[0].model_copy(update={"error": "RuntimeError: no"})
    assert left_to_the_server(modules, [failed, *built[1:]], "over") == (
        "sglang_jit: 1 of 5 modules were left to the server: activation_bf16_t_true: RuntimeError: no",
    )
    (said,) = left_to_the_server(modules, [], "it ended by status 139")
    assert said.startswith("sglang_jit: 5 of 5 modules")
    assert said.endswith("it ended by status 139")
