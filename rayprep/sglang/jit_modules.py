"""Which of SGLang's own JIT modules a server compiles on Hopper (sm_90).

Read in sglang 0.5.16, held against the folders that real servers left, and read again in 0.5.17 to 0.5.23:
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
from rayprep.sglang import jit_functions
from rayprep.sglang.architecture import Architecture, WidthMissing
from rayprep.sglang.flags import ServerFlags
from rayprep.sglang.jit_functions import JitModule

_MODELS = frozenset({"llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"})
_HALF = {"bfloat16": "bfloat16", "float16": "float16", "half": "float16"}
_KV_BYTES = {"auto": 2, "bf16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
"""Of one element of the cache, by --kv-cache-dtype, for a model in half precision."""
_ROPE_WIDTHS = (64, 128, 256, 512)
_QK_NORM_WIDTHS = (64, 128, 256, 512, 1024)
_QUANT_GROUPS = (16, 32, 64, 128)


class JitRequest(Record):
    """What the child is to compile."""

    modules: tuple[JitModule, ...]


class JitLine(Record):
    """What became of one module: it is in the cache, or `error` says why not."""

    name: str
    seconds: float
    error: str | None = None


def jit_modules(
    architecture: Architecture, tp: int, server_args: tuple[str, ...], version: str | None
) -> tuple[JitModule, ...]:
    """The modules that one rank of `tp` certainly needs on sm_90; all ranks need the same. None for other models.

    Args:
        version: SGLang's.

    Raises:
        BadRequest: a word of `server_args` belongs to no flag.
    """
    flags = ServerFlags(server_args)
    dtype = flags.dtype(architecture)
    if architecture.model_type not in _MODELS or dtype not in ("bfloat16", "float16") or architecture.unread:
        return ()
    with contextlib.suppress(WidthMissing):
        return _of_known(architecture, tp, dtype, flags, version)
    return ()


def _of_known(
    architecture: Architecture, tp: int, dtype: str, flags: ServerFlags, version: str | None
) -> tuple[JitModule, ...]:
    """Raise WidthMissing where the config leaves one out that is needed."""
    modules = [
        jit_functions.activation(version, dtype),
        jit_functions.clamp_position(version, "int64"),
        *_rope(architecture, dtype, version),
        *_quantization(architecture, dtype, version),
    ]
    kv_bytes = _KV_BYTES.get(flags.get("kv_cache_dtype", "auto"))
    if architecture.is_mla:
        return (*modules, *_latent(architecture, kv_bytes, version), *_mla_keys(architecture, tp, flags, version))
    norm = _qk_norm(architecture, dtype, flags, version)
    return (*modules, *norm, *_keys_and_values(architecture, tp, dtype, kv_bytes, version))


def left_to_the_server(modules: Sequence[JitModule], lines: Sequence[JitLine], ended: str) -> tuple[str, ...]:
    """One warning where not all were built ahead, with the first one's reason. `ended` says how the child did."""
    errors = {line.name: line.error for line in lines}
    left = [module.name for module in modules if errors.get(module.name, ended) is not None]
    if not left:
        return ()
    why = next((error for name in left if (error := errors.get(name))), ended)
    which = f"{len(left)} of {len(modules)} modules were left to the server"
    return (f"sglang_jit: {which}: {', '.join(left)}: {why}",)


def _rope(architecture: Architecture, dtype: str, version: str | None) -> list[JitModule]:
    width = architecture.qk_rope_head_dim if architecture.is_mla else architecture.width("head_dim")
    if width not in _ROPE_WIDTHS:
        return []
    # DeepSeek interleaves.
    return [jit_functions.rope(version, halves=not architecture.is_mla, width=width, dtype=dtype)]


def _quantization(architecture: Architecture, dtype: str, version: str | None) -> list[JitModule]:
    quantization, block = architecture.quantization, architecture.weight_block_size
    if quantization is None or quantization.quant_method != "fp8" or not block or block[-1] not in _QUANT_GROUPS:
        return []
    with_experts = architecture.num_experts > 0
    return jit_functions.group_quantization(version, dtype, block[-1], with_experts=with_experts)


def _qk_norm(architecture: Architecture, dtype: str, flags: ServerFlags, version: str | None) -> list[JitModule]:
    width = architecture.width("head_dim")
    otherwise = {"enable_deterministic_inference", "enable_fused_qk_norm_rope"} & flags.keys()
    if not architecture.model_type.startswith("qwen3") or width not in _QK_NORM_WIDTHS or otherwise:
        return []
    return [jit_functions.qk_norm(version, width, dtype)]


def _keys_and_values(
    architecture: Architecture, tp: int, dtype: str, kv_bytes: int | None, version: str | None
) -> list[JitModule]:
    within_rope = architecture.model_type == "qwen3_moe" and dtype == "bfloat16" and kv_bytes == 2
    if kv_bytes is None or within_rope:
        return []
    row = architecture.kv_heads(tp) * architecture.width("head_dim") * kv_bytes
    return [jit_functions.kv_cache(version, row)] if row % 4 == 0 else []


def _latent(architecture: Architecture, kv_bytes: int | None, version: str | None) -> list[JitModule]:
    if kv_bytes is None:
        return []
    nope, rope = (architecture.kv_lora_rank or 0) * kv_bytes, architecture.qk_rope_head_dim * kv_bytes
    if nope % 4 or rope % 4 or (nope + rope) % 16:
        return []
    return [jit_functions.mla_kv_buffer(version, nope, rope)]


def _mla_keys(architecture: Architecture, tp: int, flags: ServerFlags, version: str | None) -> list[JitModule]:
    heads = architecture.share("num_attention_heads", tp)
    widths = (heads, architecture.qk_nope_head_dim, architecture.qk_rope_head_dim)
    absorbed = {"enable_deterministic_inference", "flashinfer_mla_disable_ragged"} & flags.keys()
    if widths != (128, 128, 64) or absorbed:
        return []
    return [jit_functions.mla_keys(version)]
