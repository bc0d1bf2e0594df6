"""A MoE layer on made-up weights, and inputs and routings for it; only in the tuner's measuring processes."""

from typing import NamedTuple

import sglang.srt.layers.moe.fused_moe_triton  # noqa: F401 - first: the modules below import one another
import torch
from sglang.srt.layers.moe.topk import StandardTopKOutput
from torch import Tensor

from rayprep.sglang.moe_shape import FP8, MoeShape

_WEIGHT_SCALE = 0.02
_CALLS = ((256, 16), (2048, 8))
_CALLS_ABOVE = 4


class LayerWeights(NamedTuple):
    """One layer's experts. E experts, N wide, on K hidden."""

    gate_up: Tensor
    """[E, 2 N, K]."""
    down: Tensor
    """[E, K, N]."""
    gate_up_scale: Tensor | None
    down_scale: Tensor | None


class Inputs(NamedTuple):
    """What the calls of one graph get. C calls of M tokens each."""

    fresh: Tensor
    """[C, M, K]."""
    states: Tensor
    """The same, written over by each call."""
    routing: tuple[StandardTopKOutput, ...]


class MadeUpLayer:
    """Makes the tensors of one shape, on one GPU."""

    def __init__(self, shape: MoeShape, seed: int, device: torch.device) -> None:
        self.shape, self._seed, self._device = shape, seed, device
        self._dtype = getattr(torch, shape.activation)
        self._generator = torch.Generator(device).manual_seed(seed)

    def weights(self) -> LayerWeights:
        shape = self.shape
        sizes = ((2 * shape.width, shape.hidden), (shape.hidden, shape.width))
        (gate_up, down), (gate_up_scale, down_scale) = (
            [self._weight(*size) for size in sizes],
            [self._scale(*size) for size in sizes],
        )
        return LayerWeights(gate_up, down, gate_up_scale, down_scale)

    def _weight(self, rows: int, depth: int) -> Tensor:
        """[E, rows, depth], an expert at a time: all at once in bfloat16 could be more than fits."""
        dtype = torch.float8_e4m3fn if self.shape.dtype == FP8 else self._dtype
        made = torch.empty(self.shape.experts, rows, depth, dtype=dtype, device=self._device)
        scale = 1.0 if self.shape.dtype == FP8 else _WEIGHT_SCALE
        for expert in made:
            expert.copy_(torch.randn(rows, depth, generator=self._generator, device=self._device) * scale)
        return made

    def _scale(self, rows: int, depth: int) -> Tensor | None:
        shape = self.shape
        if shape.dtype != FP8:
            return None
        size: tuple[int, ...] = (shape.experts,)
        if shape.block:
            size = (shape.experts, -(-rows // shape.block[0]), -(-depth // shape.block[1]))
        elif shape.per_channel:
            size = (shape.experts, rows, 1)
        return torch.full(size, _WEIGHT_SCALE, dtype=torch.float32, device=self._device)

    def inputs(self, tokens: int, calls: int | None = None) -> Inputs:
        """The same for the same seed, whatever was made before.

        Args:
            calls: how many of them; as many as it takes to measure where that is not said.
        """
        shape, device = self.shape, self._device
        generator = torch.Generator(device).manual_seed(self._seed + tokens)
        calls = calls or next((calls for most, calls in _CALLS if tokens <= most), _CALLS_ABOVE)
        fresh = torch.randn(calls, tokens, shape.hidden, generator=generator, device=device).to(self._dtype)
        routing = tuple(self._routing(tokens, generator) for _ in range(calls))
        return Inputs(fresh, fresh.clone(), routing)

    def _routing(self, tokens: int, generator: torch.Generator) -> StandardTopKOutput:
        """Each token to its own random experts, and to all shared ones."""
        shape = self.shape
        routed = shape.experts - shape.shared
        logits = torch.rand(tokens, routed, generator=generator, device=self._device)
        weights, ids = logits.topk(shape.top_k - shape.shared)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        if shape.shared:
            always = torch.arange(routed, shape.experts, device=self._device).expand(tokens, shape.shared)
            ids = torch.cat([ids, always], dim=1)
            weights = torch.cat([weights, torch.ones_like(weights[:, : shape.shared])], dim=1)
        return StandardTopKOutput(weights.float().contiguous(), ids.to(torch.int32).contiguous(), logits)
