"""What is so from one release of SGLang on: the one table of it, by the first release that has it.

What the installed SGLang or library can be asked (whether a function is there, what a log says) is not in it.
Source: the wheels of each release in `KNOWN`.
"""

import re
from enum import StrEnum

KNOWN = ("0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23")
READ = KNOWN[0]
"""The release that the tables of this folder were read in."""
NEWEST = KNOWN[-1]


class Since(StrEnum):
    """Something that SGLang has, and the first release that has it. Two that came together are equal."""

    CONTIGUOUS_EXPERTS = "0.5.17"
    """It chooses between masked and contiguous experts by the memory that they take.

    `_should_use_masked_standard_layout` in `srt/layers/moe/moe_runner/deep_gemm.py`."""

    KERNELS_PACKAGE = "0.5.17"
    """Its own JIT modules are compiled by `sglang.kernels.ops`, before by `sglang.jit_kernel`."""

    FUSED_ALL_REDUCE_V4 = "0.5.18"
    """It fuses all-reduce and norm by itself for DeepSeek-V4.

    `_FLASHINFER_ALLREDUCE_FUSION_ARCHS` in `srt/arg_groups/overrides.py`."""

    SMALLER_WARM_UP = "0.5.18"
    """Its loop over DeepGEMM's kernels goes down to 2048 rows where memory is short, not to 4096 alone.

    `_compile_deep_gemm_one_type_all` in `srt/layers/deep_gemm_wrapper/compile_utils.py`."""

    EARLY_LAUNCH = "0.5.19"
    """On sm_90 and newer a MoE kernel lets the next one begin before its end: early at few rows, which is compiled in.

    `GDC_EARLY` in `kernels/ops/moe/fused_moe_triton_kernels.py`."""

    FUSED_ALL_REDUCE_EXP = "0.5.20"
    """It fuses all-reduce and norm by itself for Qwen4-Exp and for Nemotron-H Omni, too."""

    KV_CACHE_THREADS = "0.5.21"
    """`_jit_kvcache_module` in `kernels/ops/kvcache/kvcache.py` takes a number of threads, and 0 to choose it."""

    SCALES_COUNTED = "0.5.22"
    """Its loop over DeepGEMM's kernels counts the scales of FP8 operands in the memory that a product needs.

    `get_memory_requirement` in `srt/layers/deep_gemm_wrapper/compile_utils.py`."""

    ROWS_IN_FOURS = "0.5.22"
    """It pads the sorted rows of all experts to a multiple of four.

    `moe_align_block_size.py` in `srt/layers/moe/moe_runner/triton_utils`."""

    QK_NORM_HALF_WARP = "0.5.23"
    """`_jit_qknorm_module` in `kernels/ops/layernorm/norm.py` has `half_warp` in the module's name."""


DEEP_JIT = "0.2"
"""The first sgl-deep-gemm, of sglang 0.5.20, that compiles by `include/deep_jit`: with nvcc alone, and a newer one.

Its DG_JIT_CACHE_DIR is a list, of which a colon ends an item."""
DEEP_JIT_NVCC = "12.9"
"""The oldest nvcc that it takes. Source: `get_compiler_info` in `include/deep_jit/backend/cuda/backend.hpp`."""


def has_deep_jit(deep_gemm: str | None) -> bool:
    """Tell whether this version of sgl-deep-gemm is DEEP_JIT or later; one that is not known is taken for READ's."""
    return deep_gemm is not None and since(deep_gemm, DEEP_JIT)


def since(version: str | None, first: str) -> bool:
    """Tell whether `version` is `first` or a later one; a version that is not known is taken for READ."""
    return _numbers(version or READ) >= _numbers(first)


def warning_of_release(version: str | None) -> str | None:
    """One line for whoever runs a release that nobody has looked at yet."""
    if version is None or _numbers(version) <= _numbers(NEWEST):
        return None
    return (
        f"SGLang {version} is newer than {NEWEST}, the newest that rayprep knows: it is taken for that one, and what "
        "then cannot be built is left to the server"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release's numbers, less what a pre-release or a local version adds: (0, 5, 16)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(number) for number in match[1].split(".")) if match else ()
