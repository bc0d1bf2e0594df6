"""Which of SGLang's own JIT modules (`sglang.jit_kernel`) a server compiles on Hopper (sm_90).

Read in sglang 0.5.16, and held against the folders that real servers left:
- positions of every decode: `model_executor/forward_batch_info.py` (`clamp_position`);
- SiLU of every MLP and expert: `layers/activation.py`, `layers/moe/moe_runner/triton_utils/fused_moe.py`;
- rope: `layers/rotary_embedding/base.py` (`RotaryEmbedding.forward_cuda`), interleaved in `models/deepseek_v2.py`;
- activations of block-wise FP8: `kernels/ops/quantization/fp8_kernel.py` (`_run_per_token_group_quant_8bit_kernel`);
- QK norm of Qwen3: `models/utils.py` (`apply_qk_norm`);
- writing keys and values: `mem_cache/memory_pool.py` (`_set_kv_buffer_impl`), which Qwen3-MoE does within rope where
  the cache is in bf16 (`enable_fused_set_kv_buffer` in `models/utils.py`);
- MLA: writing the latent of 768 tokens and more (`set_mla_kv_buffer_triton` in `kernels/ops/kvcache/mla_buffer.py`),
  and the keys of 128 heads (`_concat_and_cast_mha_k` in `deepseek_common/attention_forward_methods/forward_mha.py`).
Only what is certain for the models named below is listed: what is not, the server compiles by itself, and what it
never asks for has cost a few seconds of one CPU.
"""

import contextlib
from collections.abc import Sequence

from rayprep.base.records import Record
from rayprep.sglang.architecture import Architecture, WidthMissing
from rayprep.sglang.flags import ServerFlags

PDL = "pdl"
"""The argument that stands for what SGLang finds out of the GPU: programmatic dependent launch, from sm_90 on."""

_MODELS = frozenset({"llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"})
_CPP = {
    **{"bfloat16": "bf16_t", "float16": "fp16_t", "float8_e4m3fn": "fp8_e4m3_t", "int64": "int64_t"},
    **{"True": "true", "False": "false", PDL: "true"},
}
_HALF = {"bfloat16": "bfloat16", "float16": "float16", "half": "float16"}
_KV_BYTES = {"auto": 2, "bf16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
"""Of one element of the cache, by --kv-cache-dtype, for a model in half precision."""
_ROPE_WIDTHS = (64, 128, 256, 512)
_QK_NORM_WIDTHS = (64, 128, 256, 512, 1024)
_QUANT_GROUPS = (16, 32, 64, 128)

Arg = bool | int | str


class JitModule(Record):
    """One module: the function that compiles it, and what that is called with; types by torch's names."""

    module: str
    function: str
    args: tuple[Arg, ...] = ()
    name: str
    """Its folder in the cache is `sgl_kernel_jit_NAME_HASH__arch_9.0a__tvmffi_VERSION`."""


class JitRequest(Record):
    """What the child is to compile."""

    modules: tuple[JitModule, ...]


class JitLine(Record):
    """What became of one module: it is in the cache, or `error` says why not."""

    name: str
    seconds: float
    error: str | None = None


def jit_modules(architecture: Architecture, tp: int, server_args: tuple[str, ...]) -> tuple[JitModule, ...]:
    """The modules that one rank of `tp` certainly needs on sm_90; all ranks need the same. None for other models.

    Raises:
        BadRequest: a word of `server_args` belongs to no flag.
    """
    flags = ServerFlags(server_args)
    dtype = flags.dtype(architecture)
    if architecture.model_type not in _MODELS or dtype not in ("bfloat16", "float16") or architecture.unread:
        return ()
    with contextlib.suppress(WidthMissing):
        return _of_known(architecture, tp, dtype, flags)
    return ()


def _of_known(architecture: Architecture, tp: int, dtype: str, flags: ServerFlags) -> tuple[JitModule, ...]:
    """Raise WidthMissing where the config leaves one out that is needed."""
    found = [
        _module("activation", "_jit_activation_module", (dtype,), ("activation", dtype, PDL)),
        _module("clamp_position", "_jit_clamp_position_module", ("int64",), ("clamp_position", "int64")),
        *_rope(architecture, dtype),
        *_quantization(architecture, dtype),
    ]
    kv_bytes = _KV_BYTES.get(flags.get("kv_cache_dtype", "auto"))
    if architecture.is_mla:
        return (*found, *_latent(architecture, kv_bytes), *_mla_keys(architecture, tp, flags))
    return (*found, *_qk_norm(architecture, dtype, flags), *_keys_and_values(architecture, tp, dtype, kv_bytes))


def left_to_the_server(modules: Sequence[JitModule], lines: Sequence[JitLine], ended: str) -> tuple[str, ...]:
    """One warning where not all were built ahead, with the first one's reason. `ended` says how the child did."""
    errors = {line.name: line.error for line in lines}
    left = [module.name for module in modules if errors.get(module.name, ended) is not None]
    if not left:
        return ()
    why = next((error for name in left if (error := errors.get(name))), ended)
    which = f"{len(left)} of {len(modules)} modules were left to the server"
    return (f"sglang_jit: {which}: {', '.join(left)}: {why}",)


def _module(place: str, function: str, args: tuple[Arg, ...], parts: tuple[Arg, ...]) -> JitModule:
    """`parts` are what the function gives to `load_jit`, which joins them to the name."""
    name = "_".join(_CPP.get(str(part), str(part)) for part in parts)
    return JitModule(module=f"sglang.jit_kernel.{place}", function=function, args=args, name=name)


def _rope(architecture: Architecture, dtype: str) -> list[JitModule]:
    width = architecture.qk_rope_head_dim if architecture.is_mla else architecture.width("head_dim")
    if width not in _ROPE_WIDTHS:
        return []
    halves = not architecture.is_mla  # DeepSeek interleaves
    parts = ("fused_rope", halves, width, PDL, dtype)
    return [_module("rope", "_jit_fused_rope_module", (halves, width, dtype), parts)]


def _quantization(architecture: Architecture, dtype: str) -> list[JitModule]:
    quantization, block = architecture.quantization, architecture.weight_block_size
    if quantization is None or quantization.quant_method != "fp8" or not block or block[-1] not in _QUANT_GROUPS:
        return []
    place = "per_token_group_quant_8bit_v2"
    args = (dtype, "float8_e4m3fn", PDL)
    return [_module(place, "_jit_module", args, (place, *args))]


def _qk_norm(architecture: Architecture, dtype: str, flags: ServerFlags) -> list[JitModule]:
    width = architecture.width("head_dim")
    otherwise = {"enable_deterministic_inference", "enable_fused_qk_norm_rope"} & flags.keys()
    if not architecture.model_type.startswith("qwen3") or width not in _QK_NORM_WIDTHS or otherwise:
        return []
    return [_module("norm", "_jit_qknorm_module", (width, dtype), ("qknorm", width, PDL, dtype))]


def _keys_and_values(architecture: Architecture, tp: int, dtype: str, kv_bytes: int | None) -> list[JitModule]:
    within_rope = architecture.model_type == "qwen3_moe" and dtype == "bfloat16" and kv_bytes == 2
    if kv_bytes is None or within_rope:
        return []
    row = architecture.kv_heads(tp) * architecture.width("head_dim") * kv_bytes
    return [_module("kvcache", "_jit_kvcache_module", (row,), ("kvcache", row, PDL))] if row % 4 == 0 else []


def _latent(architecture: Architecture, kv_bytes: int | None) -> list[JitModule]:
    if kv_bytes is None:
        return []
    nope, rope = (architecture.kv_lora_rank or 0) * kv_bytes, architecture.qk_rope_head_dim * kv_bytes
    if nope % 4 or rope % 4 or (nope + rope) % 16:
        return []
    place = "set_mla_kv_buffer"
    args = (nope, rope, PDL)
    return [_module(place, "_jit_set_mla_kv_buffer_module", args, (f"{place}_{nope}_{rope}", *args))]


def _mla_keys(architecture: Architecture, tp: int, flags: ServerFlags) -> list[JitModule]:
    heads = architecture.share("num_attention_heads", tp)
    widths = (heads, architecture.qk_nope_head_dim, architecture.qk_rope_head_dim)
    absorbed = {"enable_deterministic_inference", "flashinfer_mla_disable_ragged"} & flags.keys()
    if widths != (128, 128, 64) or absorbed:
        return []
    return [_module("concat_mla", "_jit_concat_mla_k_module", (), ("concat_mla_k",))]
