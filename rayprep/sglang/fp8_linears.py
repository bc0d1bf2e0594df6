"""The linear layers of the models that rayprep knows, as SGLang splits them over the ranks of a TP: tables, frozen.

Source: sglang 0.5.16 (and the same up to 0.5.23), `srt/layers/quantization/{fp8,utils}.py` and
`srt/models/{qwen2,qwen3,llama,mistral,qwen2_moe,qwen3_moe,deepseek_v2}.py`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rayprep.sglang.architecture import Architecture, split
from rayprep.sglang.experts import fused_shared_experts

_DENSE = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")
_QWEN_MOE = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_DEEPSEEK = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")

_UNFUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""Layers that SGLang fuses, and the names that a checkpoint has for their parts."""


class Linear(NamedTuple):
    """One linear layer of a rank: the module's path, and its weight [N, K]."""

    path: str
    n: int
    k: int


def is_known(architecture: Architecture) -> bool:
    """Whether `fp8_layers` can name the layers of this model."""
    family = _family(architecture)
    if family is None or architecture.unread:
        return False
    return family is not _DEEPSEEK or bool(architecture.kv_lora_rank and architecture.v_head_dim)


def fp8_layers(architecture: Architecture, tp: int, flags: Mapping[str, str]) -> list[Linear]:
    """The layers that the config does not leave unquantised, experts left out.

    Args:
        flags: SGLang's own, by their plain names.

    Raises:
        WidthMissing: the config leaves one out.
    """
    ignored = architecture.quantization.ignored_layers if architecture.quantization else ()
    skipped = tuple(_dotted(name.removeprefix("model.")) for name in ignored)
    return [each for each in _linears(architecture, tp, flags) if not _is_skipped(each.path, skipped)]


def _family(architecture: Architecture) -> tuple[str, ...] | None:
    return next((family for family in (_DENSE, _QWEN_MOE, _DEEPSEEK) if architecture.family in family), None)


def _linears(architecture: Architecture, tp: int, flags: Mapping[str, str]) -> Iterator[Linear]:
    """Every linear layer that FP8 could apply to. Column-parallel ones split N, row-parallel ones K."""
    family, hidden = _family(architecture), architecture.width("hidden_size")
    shared = 0 if fused_shared_experts(architecture, flags) else _shared_width(architecture)
    for number in range(architecture.width("num_hidden_layers")):
        yield from (_mla if family is _DEEPSEEK else _attention)(architecture, tp, f"layers.{number}.self_attn")
        path = f"layers.{number}.mlp"
        if not _is_sparse(architecture, number):
            yield from _mlp(hidden, architecture.share("intermediate_size", tp), path)
        elif shared:
            name = "shared_experts" if family is _DEEPSEEK else "shared_expert"
            yield from _mlp(hidden, split(shared, tp, "shared expert"), f"{path}.{name}")


def _is_sparse(architecture: Architecture, number: int) -> bool:
    """Whether layer `number` has experts. SGLang 0.5.16 takes all layers of a Qwen MoE model for sparse."""
    if _family(architecture) is not _DEEPSEEK:
        return _family(architecture) is _QWEN_MOE
    after_dense = number >= architecture.first_k_dense_replace and number % architecture.moe_layer_freq == 0
    return architecture.is_moe and after_dense


def _attention(architecture: Architecture, tp: int, path: str) -> Iterator[Linear]:
    """Grouped-query attention."""
    width, hidden = architecture.width("head_dim"), architecture.width("hidden_size")
    heads = architecture.share("num_attention_heads", tp)
    yield Linear(f"{path}.qkv_proj", (heads + 2 * architecture.kv_heads(tp)) * width, hidden)
    yield Linear(f"{path}.o_proj", hidden, heads * width)


def _mla(architecture: Architecture, tp: int, path: str) -> Iterator[Linear]:
    """Multi-head latent attention. What leads into the latent space is whole on every rank."""
    hidden, latent = architecture.width("hidden_size"), architecture.kv_lora_rank or 0
    heads, value = architecture.share("num_attention_heads", tp), architecture.v_head_dim or 0
    query = heads * (architecture.qk_nope_head_dim + architecture.qk_rope_head_dim)
    latent_and_rope = latent + architecture.qk_rope_head_dim
    if architecture.q_lora_rank:
        yield Linear(f"{path}.fused_qkv_a_proj_with_mqa", architecture.q_lora_rank + latent_and_rope, hidden)
        yield Linear(f"{path}.q_b_proj", query, architecture.q_lora_rank)
    else:
        yield Linear(f"{path}.q_proj", query, hidden)
        yield Linear(f"{path}.kv_a_proj_with_mqa", latent_and_rope, hidden)
    yield Linear(f"{path}.kv_b_proj", heads * (architecture.qk_nope_head_dim + value), latent)
    yield Linear(f"{path}.o_proj", hidden, heads * value)


def _mlp(hidden: int, width: int, path: str) -> Iterator[Linear]:
    yield Linear(f"{path}.gate_up_proj", 2 * width, hidden)
    yield Linear(f"{path}.down_proj", hidden, width)


def _shared_width(architecture: Architecture) -> int:
    """The width of the MLP that every token goes through beside its experts; 0 where there is none."""
    if _family(architecture) is _DEEPSEEK:
        return architecture.n_shared_experts * (architecture.moe_intermediate_size or 0)
    return architecture.shared_expert_intermediate_size


def _is_skipped(path: str, ignored: tuple[str, ...]) -> bool:
    """Whether the config leaves the layer unquantised: `is_layer_skipped` in quantization/utils.py."""
    if not ignored:
        return False
    parent, _, name = path.rpartition(".")
    shards = [_dotted(f"{parent}.{part}") for part in _UNFUSED.get(name, (name,))]
    return all(any(each in shard for each in ignored) for shard in shards)


def _dotted(name: str) -> str:
    """A module's path between dots, so that one path lies in another only by whole names."""
    return f".{name.strip('.')}."
