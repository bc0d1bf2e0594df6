"""What `rayprep.sglang.releases` has by the first release: that it is there from that one on, and not before."""

from rayprep.sglang.flashinfer_modules import _FUSED_SINCE
from rayprep.sglang.releases import DEEP_JIT_NVCC, Since
from rayprep.stages.moe_tune.space import _EARLY_ROWS
from scripts.upstream.checks import Holds, Item, Named
from scripts.upstream.contract import DEEP_GEMM, DEEP_GEMM_LOOP, DEEP_JIT_SINCE, Contract, rows
from scripts.upstream.contracts.functions import FUSED

_EXPERTS = ("sglang/srt/layers/moe/moe_runner/deep_gemm.py",)
_ALIGNED = ("sglang/srt/layers/moe/moe_runner/triton_utils/moe_align_block_size.py",)
_MOE_KERNELS = ("sglang/kernels/ops/moe/fused_moe_triton_kernels.py",)
_IN_THE_SERVER = "products are listed for too few rows, or too many: the server compiles what is missing"
_UNLISTED = "the tuner's kernels are not all listed ahead: they are compiled one after another, where it measures"
_LEFT = "the module is left to the server, and another one is built for nothing"

RELEASES: tuple[Contract, ...] = (
    *rows(
        "products of experts are listed for a layout that is not used",
        Named("function", "_should_use_masked_standard_layout", _EXPERTS),
        since=Since.CONTIGUOUS_EXPERTS,
    ),
    *(
        row
        for model, first in _FUSED_SINCE.items()
        for row in rows(
            "without an inventory a module of FlashInfer's is built for nothing",
            Item(*FUSED, model),
            since=first,
        )
    ),
    *rows(
        _LEFT,
        Named("argument", "num_threads", ("sglang/kernels/ops/kvcache/kvcache.py",)),
        since=Since.KV_CACHE_THREADS,
    ),
    *rows(
        _LEFT,
        Named("argument", "half_warp", ("sglang/kernels/ops/layernorm/norm.py",)),
        since=Since.QK_NORM_HALF_WARP,
    ),
    *rows(_IN_THE_SERVER, Holds("and max_m > 4096", DEEP_GEMM_LOOP), until="0.5.17", replaced=True),
    *rows(_IN_THE_SERVER, Holds("and max_m > 2048", DEEP_GEMM_LOOP), since=Since.SMALLER_WARM_UP),
    *rows(_IN_THE_SERVER, Named("term", "lhs_scales", DEEP_GEMM_LOOP), since=Since.SCALES_COUNTED),
    *rows(_UNLISTED, Holds(f'"GDC_EARLY": A.shape[0] <= {_EARLY_ROWS}', _MOE_KERNELS), since=Since.EARLY_LAUNCH),
    *rows(_UNLISTED, Holds("max_num_tokens_padded + 3) // 4 * 4", _ALIGNED), since=Since.ROWS_IN_FOURS),
    *rows(
        "DeepGEMM's stage takes an nvcc that DeepGEMM refuses, or refuses one that it takes",
        Holds(f"NVCC version must be at least {DEEP_JIT_NVCC}", ("deep_gemm/include/deep_jit/backend/cuda/*.hpp",)),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
)
