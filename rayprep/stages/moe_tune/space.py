"""The configs of SGLang's fused MoE kernel that a tuner can try: the official space, a short list, and neighbours."""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product

from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.sglang.releases import Since, since

OFFICIAL: dict[str, tuple[int, ...]] = {
    "num_stages": (2, 3, 4, 5),
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256),
    "BLOCK_SIZE_K": (64, 128, 256),
    "BLOCK_SIZE_N": (32, 64, 128, 256),
    "num_warps": (4, 8),
    "GROUP_SIZE_M": (1, 16, 32, 64),
}
"""Source: `get_configs_compute_bound` in sglang's benchmark/kernels/fused_moe_triton/common_utils.py; its order too."""

_FP8 = (
    *("16,128,128,1,4,3", "16,128,128,16,4,3", "16,128,128,32,4,3", "16,128,128,64,4,3"),
    *("16,128,128,1,4,4", "16,128,128,32,4,4", "16,64,128,1,4,3", "16,64,128,1,4,4", "16,64,128,1,4,5"),
    *("16,64,128,16,4,4", "16,64,128,32,4,4", "16,256,128,16,4,2", "16,128,256,1,4,3", "16,128,256,1,4,2"),
    *("32,128,128,1,4,3", "32,128,128,32,4,3", "32,128,128,1,4,5"),
    *("64,128,128,1,4,3", "64,128,128,16,4,3", "64,128,128,32,4,3", "64,128,128,1,4,4", "64,128,128,16,4,4"),
    *("64,128,128,32,4,4", "64,64,128,16,4,3", "64,64,128,1,4,3", "64,128,128,16,8,3"),
    *("128,128,128,16,8,3", "128,128,128,16,8,4", "128,128,128,1,8,3", "128,256,128,16,8,4"),
)
_HALF = (
    *("16,64,64,1,4,5", "16,64,64,1,4,4", "16,64,64,1,4,3", "16,64,64,32,4,5", "16,64,64,64,4,3"),
    *("16,128,64,1,4,4", "16,128,64,1,4,3", "16,128,64,32,4,3", "16,64,128,1,4,3", "16,64,128,1,4,4"),
    *("16,64,128,32,4,2", "16,32,256,32,4,4", "16,128,128,1,4,2", "16,128,128,1,8,3", "16,128,128,16,4,3"),
    *("16,256,128,1,8,2", "32,128,64,1,4,3", "32,128,128,32,4,2", "32,256,128,16,4,2"),
    *("64,128,64,1,4,3", "64,128,64,16,4,3", "64,128,64,32,8,3", "64,128,64,1,8,4", "64,128,64,64,8,2"),
    *("128,128,64,16,8,3", "128,128,64,32,8,3", "128,256,64,1,8,4", "128,256,64,16,8,4", "128,256,64,16,8,3"),
)
"""M, N, K, group, warps, stages: the most frequent entries of the files that sglang 0.5.16 ships for the H200."""
_FEW = 32
"""Configs to begin with, about, for scaling blocks that no shipped file is for."""
_EARLY_ROWS = 512
"""Of a product: up to so many, SGLang launches the next kernel early."""
_HIGH = 64
"""A tile so high is worth a try however many rows an expert gets: few experts have thousands each."""


@cache
def official_space(shape: MoeShape) -> tuple[KernelConfig, ...]:
    """What the official tuner tries: 1920 configs, 1280 of them for weights scaled in blocks of 128.

    Empty where no tile's depth divides the scaling block's.
    """
    made = (_config(dict(zip(OFFICIAL, values, strict=True))) for values in product(*OFFICIAL.values()))
    return tuple(config for config in made if fits(config, shape))


def curated(shape: MoeShape, tokens: int) -> tuple[KernelConfig, ...]:
    """The short list for a batch of `tokens`: tiles neither far below nor far above the rows that an expert gets.

    Of the official space a few, evenly spread, where nothing on the list fits the scaling block.
    """
    rows = tokens * shape.top_k / shape.experts
    lowest, highest = min(_HIGH, rows / 8), max(32, 4 * rows)

    def suited(configs: Iterable[KernelConfig]) -> tuple[KernelConfig, ...]:
        return tuple(each for each in configs if fits(each, shape) and lowest <= each.BLOCK_SIZE_M <= highest)

    listed = suited(_parsed(text) for text in (_FP8 if shape.dtype else _HALF))
    return listed or _spread(suited(official_space(shape)))


def _spread(configs: tuple[KernelConfig, ...]) -> tuple[KernelConfig, ...]:
    """A few of them. The step is odd, or of parameters with two or four values only one would ever be hit."""
    return configs[:: len(configs) // _FEW | 1]


def neighbours(configs: Iterable[KernelConfig], shape: MoeShape) -> tuple[KernelConfig, ...]:
    """Those of the official space that are one step in one parameter away from one of `configs`, each once."""
    found = dict.fromkeys(step for config in configs for step in _steps(config))
    return tuple(config for config in found if fits(config, shape))


def fits(config: KernelConfig, shape: MoeShape) -> bool:
    """Whether the tile's depth divides the scaling block's, as the official tuner asks."""
    return shape.block is None or shape.block[1] % config.BLOCK_SIZE_K == 0


def accumulators(config: KernelConfig | None) -> float:
    """How many 32-bit sums each thread of the kernel holds, which is what the time to compile it goes by.

    Measured with triton 3.6 for sm_90: up to 128 of them 0.2 to 1 s, 256 of them 4 s, 512 of them 18 s.
    """
    if config is None:
        return 0.0
    return config.BLOCK_SIZE_M * config.BLOCK_SIZE_N / (32 * (config.num_warps or 4))


Way = tuple[str | bool, ...]
"""What two numbers of tokens have in common that run the same kernels."""


def specialisation(shape: MoeShape, tokens: int, block_m: int, release: str | None) -> Way:
    """What of a batch's size Triton compiles in: for each of two integers whether it is 1, or divisible by 16.

    They are `EM`, the padded rows of all experts, and `num_valid_tokens`. Besides, whether each product has so few rows
    that the kernel after it is launched early. Source: `moe_align_block_size` and `invoke_fused_moe_kernel` of sglang.

    Args:
        release: of SGLang.
    """
    routed = tokens * shape.top_k
    few = routed < shape.experts + 1
    padded = routed * block_m if few else routed + (shape.experts + 1) * (block_m - 1)
    if since(release, Since.ROWS_IN_FOURS):
        padded += -padded % 4
    early = (tokens <= _EARLY_ROWS, routed <= _EARLY_ROWS) if since(release, Since.EARLY_LAUNCH) else ()
    return (_class(padded), _class(routed), *early)


def turning_points(shape: MoeShape) -> tuple[int, ...]:
    """Numbers of tokens from which on sizes are specialised in other ways. In between, the ways come back every 16."""
    padded = shape.experts // shape.top_k + 1
    return (padded, _EARLY_ROWS // shape.top_k + 1, _EARLY_ROWS + 1)


def _class(value: int) -> str:
    return "one" if value == 1 else "sixteens" if value % 16 == 0 else "any"


def _steps(config: KernelConfig) -> Iterator[KernelConfig]:
    for name, values in OFFICIAL.items():
        at = values.index(getattr(config, name)) if getattr(config, name) in values else None
        if at is None:
            continue
        for near in values[max(0, at - 1) : at + 2]:
            if near != values[at]:
                yield config.model_copy(update={name: near})


def _parsed(text: str) -> KernelConfig:
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
    return _config(dict(zip(names, map(int, text.split(",")), strict=True)))


def _config(values: dict[str, int]) -> KernelConfig:
    return KernelConfig.model_validate(values)
