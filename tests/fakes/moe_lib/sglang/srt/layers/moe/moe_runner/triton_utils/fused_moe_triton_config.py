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
    if file.exists():
        return {int(key): value for key, value in json.loads(file.read_text()).items()}
    return get_moe_configs(E, N, dtype, block_n, block_k, per_channel_quant) if down_moe else None


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
    name = (experts, width, dtype, *(block_shape or (0, 0)))
    config, down, highest = get_config(), None, None
    if config is None:
        config = _nearest(get_moe_configs(*name, per_channel_quant=per_channel_quant, down_moe=False), M)
        config = config or {**DEFAULT, "BLOCK_SIZE_K": name[-1] or 64}
        if return_down_config:
            entries = get_moe_configs(*name, per_channel_quant=per_channel_quant, down_moe=True)
            if (near := _nearest(entries, M)) is not None:
                # Both products share one sorting by tiles.
                down = {**near, "BLOCK_SIZE_M": config["BLOCK_SIZE_M"]}
                highest = max(entry["BLOCK_SIZE_M"] for entry in entries.values())
    return (config, (down, highest)) if return_down_config else config


def _nearest(entries: dict[int, dict[str, int]] | None, tokens: int) -> dict[str, int] | None:
    return entries[min(entries, key=lambda size: abs(size - tokens))] if entries else None
