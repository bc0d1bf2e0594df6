"""The families whose experts are known here: tables, frozen.

Read in sglang 0.5.16's `srt/models`, each row in the file that it names, and the same in 0.5.23. Any other family is
unknown, whatever its config looks like: ask the installed SGLang (`inside/inventory.py`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rayprep.sglang.architecture import Architecture

Fused = Callable[[Architecture, Mapping[str, str]], int]
"""How many shared experts run as routed ones, by the model and SGLang's flags."""


def fused_shared_experts(architecture: Architecture, flags: Mapping[str, str]) -> int:
    """Return how many shared experts run as routed ones, so that a server's E and top-k are larger by as many."""
    fused = FAMILIES.get(architecture.family)
    return 0 if fused is None or "disable_shared_experts_fusion" in flags else fused(architecture, flags)


def _none(architecture: Architecture, flags: Mapping[str, str]) -> int:
    """Mixtral, and Qwen's models before Qwen3-Next, whose shared expert has a gate: mixtral.py, qwen2_moe.py."""
    return 0


def _of_deepseek(architecture: Architecture, flags: Mapping[str, str]) -> int:
    """`determine_num_fused_shared_experts` in deepseek_v2.py."""
    if "enforce_shared_experts_fusion" in flags:
        return architecture.n_shared_experts
    if "enable_two_batch_overlap" in flags or "enable_single_batch_overlap" in flags:
        return 0
    known = (architecture.family, architecture.num_experts, architecture.n_shared_experts)
    return 1 if known == ("DeepseekV3ForCausalLM", 256, 1) else 0


def _of_glm(architecture: Architecture, flags: Mapping[str, str]) -> int:
    """`determine_num_fused_shared_experts` in glm4_moe.py, where the shared expert is stored as the others are."""
    quantization = architecture.quantization
    apart = quantization is not None and quantization.quant_method == "w4afp8"
    return 0 if apart else architecture.n_shared_experts


def _of_qwen3_next(architecture: Architecture, flags: Mapping[str, str]) -> int:
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
