import json
import os
from collections.abc import Sequence
from pathlib import Path

import triton

HOME = Path(__file__).parent
DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3}


def get_config_file_name(
    E: int,
    N: int,
    dtype: str | None,
    block_shape: Sequence[int] | None = None,
    per_channel_quant: bool = False,
    down_moe: bool = False,
) -> str:
    words = [f"E={E}", f"N={N}", "device_name=NVIDIA_PLAYED", *([f"dtype={dtype}"] if dtype else [])]
    words += [f"block_shape={block_shape}"] if block_shape and all(block_shape) else []
    words += ["per_channel_quant=True"] if per_channel_quant else []
    return ",".join(words) + ("_down.json" if down_moe else ".json")


def get_moe_configs(
    E: int,
    N: int,
    dtype: str | None,
    block_n: int = 0,
    block_k: int = 0,
    per_channel_quant: bool = False,
    down_moe: bool = False,
) -> dict[int, dict[str, int]] | None:
    folder = Path(os.environ.get("SGLANG_MOE_CONFIG_DIR", HOME)) / "configs"
    name = get_config_file_name(E, N, dtype, [block_n, block_k], per_channel_quant, down_moe)
    file = folder / f"triton_{triton.__version__.replace('.', '_')}" / name
    return {int(key): value for key, value in json.loads(file.read_text()).items()} if file.exists() else None


def try_get_optimal_moe_config(
    w1_shape: Sequence[int],
    w2_shape: Sequence[int],
    top_k: int,
    dtype: str | None,
    M: int,
    block_shape: Sequence[int] | None = None,
    per_channel_quant: bool = False,
    return_down_config: bool = False,
) -> object:
    from sglang.srt.layers.moe.moe_runner.triton_utils import get_config

    experts, _, width = w2_shape
    rows, depth = block_shape or (0, 0)
    found, down = get_config(), None
    if found is None:
        files = [get_moe_configs(experts, width, dtype, rows, depth, per_channel_quant, each) for each in (False, True)]
        near = [file[min(file, key=lambda size: abs(size - M))] if file else None for file in files]
        found, down = near[0] or {**DEFAULT, "BLOCK_SIZE_K": depth or 64}, near[1]
    return (found, (down, None)) if return_down_config else found
