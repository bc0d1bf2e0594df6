"""One decode step of a transformer, in plain torch: what the `inductor` stage compiles.

A rank's own share of the model, at most two layers of it: RMSNorm, RoPE, grouped-query attention over a KV
cache, and a gated MLP or a small mixture of experts. Embedding, LM head, collectives, biases and the norms that
some models put on queries and keys are left out. Letters in shapes: B sequences, H hidden, N query heads, K key
and value heads, G = N / K, D head size, S slots of the cache, I intermediate, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rayprep.stages.inductor.protocol import RankShape


class Mlp(NamedTuple):
    """A gated MLP, or with a router a mixture of them."""

    gate_up: Tensor
    """[2 I, H]; of experts [E, 2 I, H]."""
    down: Tensor
    """[H, I]; of experts [E, H, I]."""
    router: Tensor | None
    """[E, H], or None for a dense MLP."""


class Layer(NamedTuple):
    """The weights of one layer."""

    attention_norm: Tensor
    """[H]."""
    qkv: Tensor
    """[(N + 2 K) D, H]."""
    output: Tensor
    """[H, N D]."""
    mlp_norm: Tensor
    """[H]."""
    mlp: Mlp


class Weights(NamedTuple):
    """The weights of the whole step."""

    layers: tuple[Layer, ...]
    final_norm: Tensor
    """[H]."""


class KvCache(NamedTuple):
    """One layer's keys and values, both [B, K, S, D]. A step writes into them in place."""

    keys: Tensor
    values: Tensor


class StepInput(NamedTuple):
    """What one step reads: the new tokens, and where in its cache each stands."""

    hidden: Tensor
    """[B, H]."""
    positions: Tensor
    """[B], int64, from 0 to S - 1."""
    caches: tuple[KvCache, ...]
    """One a layer."""

    def copy(self) -> "StepInput":
        """The same input over caches of its own, since a step writes into them."""
        caches = tuple(KvCache(cache.keys.clone(), cache.values.clone()) for cache in self.caches)
        return self._replace(caches=caches)


def decode_step(shape: RankShape, weights: Weights, step: StepInput) -> Tensor:
    """[B, H] after the last norm; writes each layer's new keys and values at `positions`."""
    hidden = step.hidden
    for layer, cache in zip(weights.layers, step.caches, strict=True):
        normed = rms_norm(hidden, layer.attention_norm, shape.eps)
        hidden = hidden + attention(shape, layer, normed, step.positions, cache)
        normed = rms_norm(hidden, layer.mlp_norm, shape.eps)
        hidden = hidden + mlp_block(normed, layer.mlp, shape.top_k)
    return rms_norm(hidden, weights.final_norm, shape.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 at least (Zhang & Sennrich 2019)."""
    wide = x.to(_wide(x))
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) by the angle position * theta^(-2 i / D); x is [B, heads, D].

    Su et al. 2021, with the pairs of GPT-NeoX and Llama (rotate-half) instead of neighbours.
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=_wide(x)) / -half
    angle = (positions[:, None] * theta**exponent)[:, None, :]
    cosine, sine = angle.cos(), angle.sin()
    first, second = x.to(_wide(x)).chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def attention(shape: RankShape, layer: Layer, x: Tensor, positions: Tensor, cache: KvCache) -> Tensor:
    """[B, H] of [B, H]: projects, writes the cache at `positions`, attends to all slots up to them."""
    batch, keys_end = x.shape[0], shape.heads + shape.kv_heads
    heads = functional.linear(x, layer.qkv).view(batch, -1, shape.head_dim)
    queries, keys, values = heads[:, : shape.heads], heads[:, shape.heads : keys_end], heads[:, keys_end:]
    rows = torch.arange(batch, device=x.device)
    cache.keys[rows, :, positions] = rope(keys, positions, shape.theta)
    cache.values[rows, :, positions] = values
    attended = attend(rope(queries, positions, shape.theta), cache, positions)
    return functional.linear(attended.flatten(1), layer.output)


def attend(queries: Tensor, cache: KvCache, positions: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the slots 0..position (Vaswani et al. 2017); queries are [B, N, D].

    Query head n reads key head n // G (grouped-query attention, Ainslie et al. 2023).
    """
    batch, kv_heads, slots, head_dim = cache.keys.shape
    grouped = queries.reshape(batch, kv_heads, -1, head_dim)  # [B, K, G, D]
    scores = (grouped @ cache.keys.transpose(-1, -2)).to(_wide(queries)) * head_dim**-0.5  # [B, K, G, S]
    visible = torch.arange(slots, device=positions.device) <= positions[:, None]
    scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
    attended: Tensor = scores.softmax(-1).to(queries.dtype) @ cache.values
    return attended.flatten(1, 2)


def mlp_block(x: Tensor, mlp: Mlp, top_k: int) -> Tensor:
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), or the mixture of it when there is a router."""
    if mlp.router is None:
        return _gated(functional.linear(x, mlp.gate_up)) @ mlp.down.T
    return mixture(x, mlp, mlp.router, top_k)


def mixture(x: Tensor, mlp: Mlp, router: Tensor, top_k: int) -> Tensor:
    """The `top_k` likeliest experts' sum, weighted by their probabilities, which are scaled to add up to 1.

    Every expert computes every token and the others' weights are 0: so no shape depends on the routing, and the
    whole is one graph. [B, H] of [B, H].
    """
    probabilities = functional.linear(x, router).to(_wide(x)).softmax(-1)
    best, chosen = probabilities.topk(top_k, dim=-1)
    share = torch.zeros_like(probabilities).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
    outputs = _gated(x @ mlp.gate_up.transpose(1, 2)) @ mlp.down.transpose(1, 2)  # [E, B, H]
    return (share.T[:, :, None] * outputs).sum(0).to(x.dtype)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _wide(x: Tensor) -> torch.dtype:
    """The type in which sums and angles are computed: float32, or the tensor's own if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


class Random:
    """Seeded weights and inputs of one shape on one device, in the shape's type; every activation is near 1."""

    def __init__(self, shape: RankShape, device: str, seed: int) -> None:
        self._shape = shape
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, shape.dtype)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._experts = self._directions()

    def weights(self) -> Weights:
        """All layers; linear maps have the deviation 1 / sqrt(inputs)."""
        layers = tuple(self._layer() for _ in range(self._shape.layers))
        return Weights(layers, self._norm())

    def step_input(self, batch_size: int, max_seq_len: int) -> StepInput:
        """Sequences of different lengths over a full cache: what a slot past the length holds must not count."""
        shape = self._shape
        slots = (batch_size, shape.kv_heads, max_seq_len, shape.head_dim)
        # Keys of deviation 2: a query then singles out a few slots, and attention is no mere average near 0.
        caches = tuple(KvCache(self._normal(slots, 2.0), self._normal(slots)) for _ in range(shape.layers))
        positions = torch.randint(1, max_seq_len, (batch_size,), device=self._device, generator=self._generator)
        return StepInput(self._tokens(batch_size), positions, caches)

    def _layer(self) -> Layer:
        shape = self._shape
        rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        return Layer(
            attention_norm=self._norm(),
            qkv=self._linear(rows, shape.hidden),
            output=self._linear(shape.hidden, shape.heads * shape.head_dim),
            mlp_norm=self._norm(),
            mlp=self._mlp(),
        )

    def _mlp(self) -> Mlp:
        shape = self._shape
        each = (shape.experts,) if shape.experts else ()
        gate_up = self._linear(*each, 2 * shape.intermediate, shape.hidden)
        down = self._linear(*each, shape.hidden, shape.intermediate)
        router = self._experts * (4 / shape.hidden**0.5) if shape.experts else None
        return Mlp(gate_up, down, None if router is None else router.to(self._dtype))

    def _directions(self) -> Tensor:
        """[E, H]: one unit vector an expert, at right angles, in float32."""
        if not self._shape.experts:
            return torch.empty(0)
        normal = self._normal((self._shape.hidden, self._shape.experts)).float()
        directions: Tensor = torch.linalg.qr(normal)[0].T.contiguous()
        return directions

    def _tokens(self, count: int) -> Tensor:
        """[count, H]. Before a router, a token is made of the experts' directions, in steps of equal size.

        Were it plain noise, some token's last chosen and first refused expert would be a rounding apart, and
        compiled and eager would rightly choose differently.
        """
        noise = self._normal((count, self._shape.hidden))
        experts = self._shape.experts
        if not experts:
            return noise
        order = torch.rand(count, experts, device=self._device, generator=self._generator).argsort(-1)
        steps = functional.normalize(2.0 * order + 1 - experts, dim=-1) * self._shape.hidden**0.5
        return torch.add(steps @ self._experts, noise, alpha=0.1).to(self._dtype)

    def _norm(self) -> Tensor:
        return 1 + self._normal((self._shape.hidden,), 0.1)

    def _linear(self, *sizes: int) -> Tensor:
        return self._normal(sizes, sizes[-1] ** -0.5)

    def _normal(self, sizes: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        empty = torch.empty(sizes, dtype=self._dtype, device=self._device)
        return empty.normal_(0.0, deviation, generator=self._generator)
