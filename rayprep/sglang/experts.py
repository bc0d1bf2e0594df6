"""Which experts a model has, by its `config.json`: the tables for the families that are known here, frozen.

Read in sglang 0.5.16's `srt/models`, each row in the file that it names, and the same in 0.5.23. Any other family is
unknown, whatever its config looks like: ask the installed SGLang (`inside/inventory.py`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayprep.sglang.architecture import Architecture

COUNT = ("num_experts", "n_routed_experts", "num_local_experts")
TOP_K = "num_experts_per_tok"
_READ = (*COUNT, TOP_K, "moe_intermediate_size")

Fused = Callable[["Architecture", Mapping[str, str]], int]
"""How many shared experts run as routed ones, by the model and SGLang's flags."""


def fused_shared_experts(architecture: "Architecture", flags: Mapping[str, str]) -> int:
    """Return how many shared experts run as routed ones, so that a server's E and top-k are larger by as many."""
    fused = FAMILIES.get(architecture.family)
    return 0 if fused is None or "disable_shared_experts_fusion" in flags else fused(architecture, flags)


def _none(architecture: "Architecture", flags: Mapping[str, str]) -> int:
    """Mixtral, and Qwen's models before Qwen3-Next, whose shared expert has a gate: mixtral.py, qwen2_moe.py."""
    return 0


def _of_deepseek(architecture: "Architecture", flags: Mapping[str, str]) -> int:
    """`determine_num_fused_shared_experts` in deepseek_v2.py."""
    if "enforce_shared_experts_fusion" in flags:
        return architecture.n_shared_experts
    if "enable_two_batch_overlap" in flags or "enable_single_batch_overlap" in flags:
        return 0
    known = (architecture.family, architecture.num_experts, architecture.n_shared_experts)
    return 1 if known == ("DeepseekV3ForCausalLM", 256, 1) else 0


def _of_glm(architecture: "Architecture", flags: Mapping[str, str]) -> int:
    """`determine_num_fused_shared_experts` in glm4_moe.py, where the shared expert is stored as the others are."""
    quantization = architecture.quantization
    apart = quantization is not None and quantization.quant_method == "w4afp8"
    return 0 if apart else architecture.n_shared_experts


def _of_qwen3_next(architecture: "Architecture", flags: Mapping[str, str]) -> int:
    """`can_fuse_shared_expert` in qwen2_moe.py, for the models that allow it: qwen3_next.py."""
    shared = architecture.shared_expert_intermediate_size
    return int(shared > 0 and shared == architecture.moe_intermediate_size)


FAMILIES: Mapping[str, Fused] = MappingProxyType(
    {
        "MixtralForCausalLM": _none,
        "Qwen2MoeForCausalLM": _none,
        "Qwen3MoeForCausalLM": _none,
        "Qwen3NextForCausalLM": _of_qwen3_next,
        "DeepseekV2ForCausalLM": _of_deepseek,
        "DeepseekV3ForCausalLM": _of_deepseek,
        "Glm4MoeForCausalLM": _of_glm,
    }
)


def unread(keys: Mapping[str, object], by_layer: Collection[str]) -> str:
    """Say why it cannot be told which experts a model has; empty where it can, or where it has none.

    Args:
        keys: a config's, less what is null.
        by_layer: those that are not read, since they have another number for each layer.
    """
    if lists := [name for name in _READ if name in by_layer]:
        return f"its layers differ in {', '.join(lists)}"
    count = next((keys[name] for name in COUNT if name in keys), None)
    if count is None:
        strange = next(_speaking_of_experts(keys), None)
        return f"its config says {strange!r}, and by no name known here how many experts it has" if strange else ""
    if count and not keys.get(TOP_K):
        return "its config says by no name known here how many experts a token goes to"
    return ""


def _speaking_of_experts(keys: Mapping[str, object]) -> Iterator[str]:
    """Yield keys at any depth. One that is 0, false or empty says that there is nothing of the kind."""
    for name, value in keys.items():
        if "expert" in name and value:
            yield name
        elif isinstance(value, Mapping):
            yield from _speaking_of_experts(value)
