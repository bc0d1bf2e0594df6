"""The decode step against naive arithmetic in float64, part by part and whole, and what makes another graph of it."""

import math
from collections.abc import Sequence

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_module_simplified
from torch._inductor.codecache import compiled_fx_graph_hash
from torch._inductor.utils import InputType
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from rayprep.sglang.architecture import Architecture
from rayprep.stages.inductor.decode_step import (
    KvCache,
    Mlp,
    Random,
    StepInput,
    Weights,
    attend,
    decode_step,
    mixture,
    mlp_block,
    rms_norm,
    rope,
)
from rayprep.stages.inductor.protocol import RankShape, rank_shape
from tests.stages.inductor.decoding import DENSE, MOE, SMALL

pytestmark = pytest.mark.torch


def normal(*sizes: int, seed: int = 0) -> Tensor:
    """Float64, so that what is left of a difference is a wrong formula."""
    return torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def widened(weights: Weights) -> Weights:
    """The same weights in float64."""
    wide: Weights = tree_map_only(Tensor, Tensor.double, weights)
    return wide


# The parts


def test_rms_norm_has_unit_mean_square_and_scales_by_its_weight() -> None:
    x, weight = normal(5, 32), normal(32, seed=1)
    plain = rms_norm(x, torch.ones(32, dtype=torch.float64), 0.0)
    assert torch.allclose(plain.square().mean(-1), torch.ones(5, dtype=torch.float64))
    naive = torch.stack([row / math.sqrt(sum(float(v) ** 2 for v in row) / 32 + 0.5) for row in x]) * weight
    assert torch.allclose(rms_norm(x, weight, 0.5), naive)


def test_rope_preserves_norms_and_leaves_position_zero_alone() -> None:
    x = normal(3, 2, 16)
    turned = rope(x, torch.tensor([0, 7, 1000]), 10000.0)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[0], x[0])
    assert not torch.allclose(turned[1], x[1], atol=0.1)


def test_rope_makes_products_depend_on_the_distance_alone() -> None:
    query, key = normal(1, 1, 16), normal(1, 1, 16, seed=1)

    def product(query_at: int, key_at: int) -> float:
        query_turned, key_turned = (rope(x, torch.tensor([at]), 500.0) for x, at in ((query, query_at), (key, key_at)))
        return float((query_turned * key_turned).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), rel=1e-9)
    assert product(9, 4) != pytest.approx(product(9, 5), rel=1e-3)


def test_rope_turns_pairs_half_a_head_apart_by_theta_to_the_power() -> None:
    x, theta, position = normal(1, 1, 6), 50.0, 11
    turned = rope(x, torch.tensor([position]), theta)[0, 0]
    for pair in range(3):
        angle = position * theta ** (-2 * pair / 6)
        number = complex(x[0, 0, pair], x[0, 0, pair + 3]) * complex(math.cos(angle), math.sin(angle))
        assert (float(turned[pair]), float(turned[pair + 3])) == pytest.approx((number.real, number.imag))


def naive_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One head's [D] over [S, D], slot by slot."""
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    return sum((w * value for w, value in zip(weights, values, strict=True)), torch.zeros_like(query)) / sum(weights)


def test_attention_equals_a_loop_over_sequences_heads_and_filled_slots() -> None:
    batch, heads, kv_heads, slots, width = 3, 6, 2, 7, 4
    queries, positions = normal(batch, heads, width), torch.tensor([0, 3, 6])
    cache = KvCache(normal(batch, kv_heads, slots, width, seed=1), normal(batch, kv_heads, slots, width, seed=2))
    actual = attend(queries, cache, positions)
    for row in range(batch):
        end = int(positions[row]) + 1
        for head in range(heads):
            shared = head // (heads // kv_heads)
            keys, values = cache.keys[row, shared, :end], cache.values[row, shared, :end]
            assert torch.allclose(actual[row, head], naive_attention(queries[row, head], keys, values))


def naive_mlp(token: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ token).chunk(2)
    return down @ (gate * torch.sigmoid(gate) * up)


def test_dense_mlp_equals_its_formula_token_by_token() -> None:
    tokens, gate_up, down = normal(4, 6), normal(10, 6, seed=1), normal(6, 5, seed=2)
    naive = torch.stack([naive_mlp(token, gate_up, down) for token in tokens])
    assert torch.allclose(mlp_block(tokens, Mlp(gate_up, down, None), 0), naive)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_mixture_equals_a_loop_over_each_tokens_chosen_experts(top_k: int) -> None:
    tokens, router = normal(9, 6), normal(4, 6, seed=1)
    gate_up, down = normal(4, 10, 6, seed=2), normal(4, 6, 5, seed=3)
    actual = mixture(tokens, Mlp(gate_up, down, router), router, top_k)
    for token, ours in zip(tokens, actual, strict=True):
        scores = [math.exp(float(score)) for score in router @ token]
        chosen = sorted(range(4), key=scores.__getitem__)[-top_k:]
        total = sum(scores[expert] for expert in chosen)
        parts = (scores[e] / total * naive_mlp(token, gate_up[e], down[e]) for e in chosen)
        assert torch.allclose(ours, sum(parts, torch.zeros_like(ours)))


# The whole step


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_decoding_token_by_token_equals_causal_attention_over_the_sequence(architecture: Architecture) -> None:
    shape, length = rank_shape(architecture, 2), 5
    weights = widened(Random(shape, "cpu", 0).weights())
    tokens = normal(length, shape.hidden)
    empty = (1, shape.kv_heads, length, shape.head_dim)
    caches = tuple(KvCache(normal(*empty), normal(*empty)) for _ in range(shape.layers))  # stale, to be masked
    decoded = [
        decode_step(shape, weights, StepInput(tokens[at : at + 1], torch.tensor([at]), caches)) for at in range(length)
    ]
    assert torch.allclose(torch.cat(decoded), whole_sequence(shape, weights, tokens))


def whole_sequence(shape: RankShape, weights: Weights, hidden: Tensor) -> Tensor:
    """All tokens [T, H] at once, layer by layer and head by head, without a cache."""
    at = torch.arange(len(hidden))
    group = shape.heads // shape.kv_heads
    for layer in weights.layers:
        heads = rms_norm(hidden, layer.attention_norm, shape.eps) @ layer.qkv.T
        queries, keys, values = heads.view(len(hidden), -1, shape.head_dim).tensor_split(
            (shape.heads, shape.heads + shape.kv_heads), dim=1
        )
        queries, keys = rope(queries, at, shape.theta), rope(keys, at, shape.theta)
        attended = [
            naive_attention(queries[t, head], keys[: t + 1, head // group], values[: t + 1, head // group])
            for t in at.tolist()
            for head in range(shape.heads)
        ]
        hidden = hidden + torch.stack(attended).view(len(hidden), -1) @ layer.output.T
        hidden = hidden + mlp_block(rms_norm(hidden, layer.mlp_norm, shape.eps), layer.mlp, shape.top_k)
    return rms_norm(hidden, weights.final_norm, shape.eps)


def test_a_step_writes_its_own_slots_and_no_others() -> None:
    shape = rank_shape(DENSE, 1)
    random = Random(shape, "cpu", 0)
    given = random.step_input(4, 16)
    before = given.copy()
    decode_step(shape, random.weights(), given)
    slots = torch.arange(16) == given.positions[:, None]
    for old, new in zip(before.caches, given.caches, strict=True):
        for was, now in zip(old, new, strict=True):
            changed = (was != now).any(-1)
            assert torch.equal(changed, slots[:, None, :].expand_as(changed))


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_random_inputs_keep_activations_near_one(architecture: Architecture) -> None:
    shape = rank_shape(architecture, 1)
    random = Random(shape, "cpu", 0)
    given = random.step_input(64, 32)
    assert given.positions.min() > 0
    assert given.positions.unique().numel() > 8
    output = decode_step(shape, random.weights(), given).float()
    assert 0.5 < output.square().mean().sqrt() < 2


def test_random_tokens_are_far_from_a_tie_between_experts() -> None:
    shape = rank_shape(MOE, 1)
    random = Random(shape, "cpu", 0)
    router, tokens = random.weights().layers[0].mlp.router, random.step_input(256, 4).hidden
    assert router is not None
    scores = (tokens.float() @ router.float().T).sort(-1, descending=True).values
    gaps = scores[:, shape.top_k - 1] - scores[:, shape.top_k]
    assert gaps.min() > 0.1 * scores.abs().max()


# What makes another graph


def graph_key(architecture: Architecture, batch_size: int = 2, seed: int = 0) -> str:
    """Inductor's own key of the step's graph, made without compiling it."""
    shape = rank_shape(architecture, 1)
    random = Random(shape, "cpu", seed)
    weights, given = random.weights(), random.step_input(batch_size, 8)
    keys: list[str] = []

    def take_key(gm: GraphModule, example_inputs: Sequence[InputType]) -> GraphModule:
        keys.append(compiled_fx_graph_hash(gm, example_inputs, {}, [])[0])
        return gm

    def backend(module: GraphModule, inputs: list[Tensor]) -> object:
        return aot_module_simplified(module, inputs, fw_compiler=take_key)

    torch._dynamo.reset()
    with torch.no_grad():
        step = torch.compile(decode_step, backend=backend, fullgraph=True, dynamic=False)
        step(shape, weights, given)
    (key,) = keys
    return key


@pytest.mark.slow  # it compiles a dozen graphs
def test_every_width_and_constant_makes_another_graph_and_a_seed_does_not() -> None:
    changes: list[dict[str, object]] = [
        {},
        {"intermediate_size": 512},
        {"rope_theta": 10000.0},
        {"rms_norm_eps": 1e-5},
    ]
    keys = [graph_key(SMALL.model_copy(update=change)) for change in changes]
    keys += [graph_key(MOE.model_copy(update={"num_hidden_layers": 1})), graph_key(SMALL, batch_size=3)]
    assert len(set(keys)) == len(keys)
    assert graph_key(SMALL, seed=1) == keys[0]
