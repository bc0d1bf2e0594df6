"""How SGLang's functions that compile its own JIT modules are called in each release, and what the modules are called.

Read in `sglang/jit_kernel/` of 0.5.16 and in `sglang/kernels/ops/` of 0.5.17 to 0.5.23. Which of them a model needs is
in `jit_modules`. `version` is SGLang's; types are named as torch names them.
"""

from rayprep.base.records import Record
from rayprep.sglang.releases import Since, since

PDL = "pdl"
"""The argument that stands for what SGLang finds out of the GPU: programmatic dependent launch, from sm_90 on."""

_CPP = {
    **{"bfloat16": "bf16_t", "float16": "fp16_t", "float8_e4m3fn": "fp8_e4m3_t", "int64": "int64_t"},
    **{"True": "true", "False": "false", PDL: "true"},
}
_FP8 = "float8_e4m3fn"
_WARP = 32

Arg = bool | int | str


class JitModule(Record):
    """One module: the function that compiles it, and what that is called with; types by torch's names."""

    module: str
    function: str
    args: tuple[Arg, ...] = ()
    name: str
    """Its folder in the cache is `sgl_kernel_jit_NAME_HASH__arch_9.0a__tvmffi_VERSION` until 0.5.17, and
    `sm90a/sgl_kernel_jit_NAME` from 0.5.18 on."""


def activation(version: str | None, dtype: str) -> JitModule:
    """Return SiLU and its like, with the fast division that every MLP asks for."""
    if since(version, Since.KERNELS_PACKAGE):
        return _module("kernels.ops.activation.activation", "activation_module", (dtype,), ("activation", dtype, PDL))
    return _module("jit_kernel.activation", "_jit_activation_module", (dtype,), ("activation", dtype, PDL))


def clamp_position(version: str | None, dtype: str) -> JitModule:
    """Return the positions of a decode, which are lengths less one."""
    place = _place(version, "attention", "clamp_position")
    return _module(place, "_jit_clamp_position_module", (dtype,), ("clamp_position", dtype))


def rope(version: str | None, *, halves: bool, width: int, dtype: str) -> JitModule:
    """Return rope over `width` elements, in halves or interleaved, for queries of the keys' type."""
    types = (dtype, dtype) if since(version, Since.KERNELS_PACKAGE) else (dtype,)
    parts = ("fused_rope", halves, width, PDL, *types)
    return _module(_place(version, "attention", "rope"), "_jit_fused_rope_module", (halves, width, *types), parts)


def group_quantization(version: str | None, dtype: str, group: int, *, with_experts: bool) -> list[JitModule]:
    """Return the quantisation of activations to FP8 by groups of elements, on Hopper, whose scales are float32.

    DeepGEMM's linears have the scales of one group side by side, Triton's experts those of one token; until 0.5.16 one
    module writes both.
    """
    if since(version, Since.KERNELS_PACKAGE):
        return [_group_quantization(dtype, group, row_major) for row_major in (False, True)[: 1 + with_experts]]
    name, args = "per_token_group_quant_8bit_v2", (dtype, _FP8, PDL)
    return [_module(f"jit_kernel.{name}", "_jit_module", args, (name, *args))]


def _group_quantization(dtype: str, group: int, row_major: bool) -> JitModule:
    """Return it for whole activations, with nothing fused."""
    name, packed, aligned, fused, masked = "per_token_group_quant", False, True, False, False
    traits = (dtype, _FP8, group, packed, row_major, aligned, fused)
    parts = (name, *traits, PDL, "flat")
    return _module(f"kernels.ops.quantization.{name}", "_jit_module", (*traits, masked, PDL), parts)


def qk_norm(version: str | None, width: int, dtype: str) -> JitModule:
    """Return the norm of queries and keys of `width` elements a head."""
    parts = ("qknorm", width, PDL, dtype, *((True,) if since(version, Since.QK_NORM_HALF_WARP) else ()))
    return _module(_place(version, "layernorm", "norm"), "_jit_qknorm_module", (width, dtype), parts)


def kv_cache(version: str | None, row: int) -> JitModule:
    """Return the write of keys and values of `row` bytes each into the cache."""
    args: tuple[int, ...] = (row,)
    parts: tuple[Arg, ...] = ("kvcache", row, PDL)
    if since(version, Since.KV_CACHE_THREADS):
        args, parts = (row, row, 0), ("kvcache", row, row, _kv_threads(row), PDL)
    elif since(version, Since.KERNELS_PACKAGE):
        args, parts = (row, row), ("kvcache", row, row, PDL)
    return _module(_place(version, "kvcache", "kvcache"), "_jit_kvcache_module", args, parts)


def _kv_threads(row: int) -> int:
    """Return what `_jit_kvcache_module` makes of 0 threads, for keys and values of `row` bytes each."""
    threads = _WARP
    # Bytes of one thread: a whole number of 8 that can be halved, and 64 for a key and a value.
    while row % (8 * threads) == 0 and 2 * row >= 64 * threads:
        threads *= 2
    return threads


def mla_kv_buffer(version: str | None, nope: int, rope_bytes: int) -> JitModule:
    """Return the write of a latent into the cache; both widths in bytes."""
    name, args = "set_mla_kv_buffer", (nope, rope_bytes, PDL)
    function = f"{name}_module" if since(version, Since.KERNELS_PACKAGE) else f"_jit_{name}_module"
    return _module(_place(version, "kvcache", name), function, args, (name, nope, rope_bytes, *args))


def mla_keys(version: str | None) -> JitModule:
    """Return the join of 128 heads' keys."""
    return _module(_place(version, "attention", "concat_mla"), "_jit_concat_mla_k_module", (), ("concat_mla_k",))


def _place(version: str | None, group: str, file: str) -> str:
    return f"kernels.ops.{group}.{file}" if since(version, Since.KERNELS_PACKAGE) else f"jit_kernel.{file}"


def _module(place: str, function: str, args: tuple[Arg, ...], parts: tuple[Arg, ...]) -> JitModule:
    """`parts` are what the function gives to `load_jit`, which joins them to the name."""
    name = "_".join(_CPP.get(str(part), str(part)) for part in parts)
    return JitModule(module=f"sglang.{place}", function=function, args=args, name=name)
