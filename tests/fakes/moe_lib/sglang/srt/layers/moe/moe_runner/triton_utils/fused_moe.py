import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from torch import Tensor

from sglang.srt.layers.moe.fused_moe_triton import GPU
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config import DEFAULT, try_get_optimal_moe_config
from sglang.srt.layers.moe.topk import StandardTopKOutput

Config = dict[str, int]


class Kernel:
    """A Triton function: what it is specialised on is compiled once, into one file of the cache."""

    def __init__(self) -> None:
        self.loaded: dict[str, bool] = {}
        self.device_caches = {0: (self.loaded,)}

    def __call__(self, config: Config, rows: int, product: str) -> bool:
        """Whether the call is launched, and not only told to Triton's hook."""
        early = [rows <= 512] if "FAKE_EARLY" in os.environ else []
        said = json.dumps([config, "sixteens" if rows % 16 == 0 else "any", product, *early], sort_keys=True)
        if said in self.loaded:
            return True
        hook = triton.knobs.runtime.jit_cache_hook
        fn = SimpleNamespace(module=__name__, name="fused_moe_kernel")
        if hook and hook(key=said, repr="", fn=fn, compile={"specialization_data": said}, is_manual_warmup=False):
            return False
        self.preload(said, by="a call")
        return True

    def preload(self, said: str, by: str = "preload") -> None:
        config, *_ = json.loads(said)
        if config["num_stages"] == int(os.environ.get("FAKE_UNCOMPILABLE_STAGES", "0")):
            raise RuntimeError("PassManager::run failed")
        if config["num_stages"] == int(os.environ.get("FAKE_DEADLY_STAGES", "0")):
            os._exit(9)
        cache = Path(triton.knobs.cache.dir or os.environ["TRITON_CACHE_DIR"])
        file = cache / (hashlib.sha256(said.encode()).hexdigest() + ".kernel")
        if triton.knobs.cache.dir is None and not file.exists():
            with (cache.parent / "compiled.txt").open("a") as log:
                log.write(f"{by}: {said}\n")
            if triton.knobs.compilation.listener:
                triton.knobs.compilation.listener(src=SimpleNamespace(name="fused_moe_kernel"), cache_hit=False)
        file.write_text(said)
        self.loaded[said] = True


fused_moe_kernel = Kernel()


def fused_moe(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_output: StandardTopKOutput,
    moe_runner_config: MoeRunnerConfig,
    use_fp8_w8a8: bool,
    per_channel_quant: bool,
    w1_scale: Tensor | None,
    w2_scale: Tensor | None,
    block_shape: Sequence[int] | None,
) -> None:
    experts, twice, hidden = w1.shape
    tokens, top_k = topk_output.topk_ids.shape
    assert hidden_states.shape == (tokens, hidden)
    assert hidden_states.is_contiguous()
    assert w2.shape == (experts, hidden, twice // 2)
    assert topk_output.topk_ids.dtype == torch.int32
    assert topk_output.topk_weights.dtype == torch.float32
    assert int(topk_output.topk_ids.max()) < experts
    assert moe_runner_config.num_experts == moe_runner_config.num_local_experts == experts
    assert moe_runner_config.inplace
    if use_fp8_w8a8 and block_shape:
        for weight, scale in ((w1, w1_scale), (w2, w2_scale)):
            assert weight.dtype == torch.float8_e4m3fn
            blocks = [-(-size // block) for size, block in zip(weight.shape[1:], block_shape, strict=True)]
            assert scale is not None
            assert list(scale.shape) == [experts, *blocks]
    config, (down, _) = try_get_optimal_moe_config(
        w1.shape,
        w2.shape,
        top_k,
        "fp8_w8a8" if use_fp8_w8a8 else None,
        tokens,
        block_shape=block_shape,
        per_channel_quant=per_channel_quant,
        return_down_config=True,
    )
    if down is not None:
        down.pop("USE_TMA", False)  # which no kernel gets as a parameter
    for product, tile in (("up", config), ("down", down or config)):
        if fused_moe_kernel(tile, tokens * top_k, product):
            _launch(tile, tokens)
    hold = os.environ.get("FAKE_HOLD")
    while hold and GPU.captured is not None and tokens == int(os.environ["FAKE_HOLD_AT"]) and Path(hold).exists():
        time.sleep(0.05)
    if triton.knobs.runtime.jit_cache_hook is not None:
        return
    hidden_states.add_(1.0)  # the layer writes its result over its input
    GPU.spend(cost_ms(config, tokens * top_k / experts))


def _launch(tile: Config, tokens: int) -> None:
    """FAKE_BREAKS: `16@12` is a tile of 16 rows that breaks with 12 tokens, and with no other number of them.

    FAKE_DEADLY_LAUNCH: the number of stages of a tile that takes the process down.
    """
    if tile["num_stages"] == int(os.environ.get("FAKE_DEADLY_LAUNCH", "0")):
        os._exit(9)
    rows = tile["BLOCK_SIZE_M"]
    if rows * tile["BLOCK_SIZE_N"] >= 128 * 256 or f"{rows}@{tokens}" == os.environ.get("FAKE_BREAKS"):
        raise RuntimeError("out of resource: shared memory, Required: 294912, Hardware limit: 232448")


def cost_ms(config: Config, rows: float) -> float:
    """Best where the tile is as high as an expert's rows, and wide.

    FAKE_GAIN: each is so many times as fast as those of SGLang's own group size, and no faster than another.
    """
    if gain := os.environ.get("FAKE_GAIN"):
        return 0.1 if config["GROUP_SIZE_M"] == DEFAULT["GROUP_SIZE_M"] else 0.1 / float(gain)
    waste = abs(config["BLOCK_SIZE_M"] - max(16, rows)) / 16 + abs(config["BLOCK_SIZE_N"] - 128) / 64
    return 0.05 + 0.001 * rows + 0.01 * waste + 0.001 * config["num_stages"]
