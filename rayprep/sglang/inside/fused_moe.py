"""SGLang's fused MoE layer of one shape: called as a server calls it, and asked which configs it would take.

Source of what is called: sglang 0.5.16, `srt/layers/moe/moe_runner/triton_utils`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sglang.srt.layers.moe.fused_moe_triton  # noqa: F401 - first: the modules below import one another
import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config as sglang_configs
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.triton_utils import override_config
from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_moe
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from torch import Tensor

from rayprep.sglang.inside.moe_layer import LayerWeights
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import FP8, MoeShape


class FusedMoe:
    """The layer of one rank. Its methods raise what torch, triton and sglang raise."""

    def __init__(self, shape: MoeShape) -> None:
        self.shape = shape
        self._block = list(shape.block) if shape.block else None
        set_global_server_args_for_scheduler(ServerArgs(model_path="dummy"))
        # As the server's layer has it: all experts are on this rank, so none is filtered.
        self._runner = MoeRunnerConfig(num_experts=shape.experts, num_local_experts=shape.experts, inplace=True)

    def run(self, states: Tensor, weights: LayerWeights, routing: StandardTopKOutput) -> None:
        """Run the layer on `states`, [M, K] for M tokens, and write the result over them."""
        fused_moe(
            states,
            weights.gate_up,
            weights.down,
            routing,
            moe_runner_config=self._runner,
            use_fp8_w8a8=self.shape.dtype == FP8,
            per_channel_quant=self.shape.per_channel,
            w1_scale=weights.gate_up_scale,
            w2_scale=weights.down_scale,
            block_shape=self._block,
        )

    def config_names(self) -> tuple[str, str]:
        """Return the names of the config file and of that for the second product."""
        shape = self.shape
        up, down = (
            sglang_configs.get_config_file_name(
                shape.experts, shape.width, shape.dtype, self._block, shape.per_channel, down_moe=down
            )
            for down in (False, True)
        )
        return up, down

    def own_configs(self, tokens: int) -> tuple[KernelConfig, KernelConfig | None]:
        """Return what SGLang takes for both products, and for the second where that differs: of its own files,
        where none of ours is in sight (SGLANG_MOE_CONFIG_DIR).
        """
        shape = self.shape
        config, (down, _) = sglang_configs.try_get_optimal_moe_config(
            (shape.experts, 2 * shape.width, shape.hidden),
            (shape.experts, shape.hidden, shape.width),
            shape.top_k,
            shape.dtype,
            tokens,
            block_shape=self._block,
            per_channel_quant=shape.per_channel,
            return_down_config=True,
        )
        second = KernelConfig.model_validate(down) if down and down != config else None
        return KernelConfig.model_validate(config), second

    def listed_sizes(self) -> tuple[int, ...]:
        """Return for how many tokens SGLang's own files say something."""
        shape = self.shape
        rows, depth = shape.block or (0, 0)
        entries = (
            sglang_configs.get_moe_configs(
                shape.experts, shape.width, shape.dtype, rows, depth, shape.per_channel, down_moe=down
            )
            for down in (False, True)
        )
        return tuple(sorted({size for listed in entries for size in listed or ()}))


def own_config_folder() -> str:
    """Return where SGLang's own config files are."""
    return str(Path(os.path.realpath(sglang_configs.__file__)).parent / "configs")


@contextmanager
def overridden(config: KernelConfig | None) -> Iterator[None]:
    """Have both products run with a config; with None, with what SGLang chooses.

    Nothing may be raised out of SGLang's own `override_config`: it would leave the config in place, and
    `own_configs` take that for SGLang's own (`triton_utils/__init__.py` of sglang 0.5.16: its `yield` is in no `try`).
    """
    failure: Exception | None = None
    with override_config(config.entry() if config else None):
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again behind it
            failure = error
    if failure is not None:
        raise failure


@contextmanager
def reading(tokens: int, up: KernelConfig, down: KernelConfig | None) -> Iterator[None]:
    """Have SGLang find an entry for a number of tokens where it reads its config files, and nothing else.

    Args:
        down: for the second product. Where there is no file for it, SGLang takes the first one's entry.
    """

    def entries(*_: object, down_moe: bool = False, **__: object) -> dict[int, dict[str, int | bool]]:
        return {tokens: (down if down_moe and down else up).entry()}

    before = sglang_configs.get_moe_configs
    sglang_configs.get_moe_configs = entries
    try:
        yield
    finally:
        sglang_configs.get_moe_configs = before
