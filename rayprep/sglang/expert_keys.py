"""What a model's `config.json` calls its experts, for the families of `experts`.

Read in sglang 0.5.16's `srt/models`: `qwen3_moe.py`, `deepseek_v2.py`, `glm4_moe.py` and `mixtral.py`.
"""

from collections.abc import Iterator, Mapping

COUNT = ("num_experts", "n_routed_experts", "num_local_experts")
_TOP_K = "num_experts_per_tok"
_READ = (*COUNT, _TOP_K, "moe_intermediate_size")
_DECIDE = ("torch_dtype", "dtype", "expert_dtype", "n_shared_experts", "shared_expert_intermediate_size")
"""Keys that tell the kernel of experts, where there are any."""


def unread(keys: Mapping[str, object], why: Mapping[str, str]) -> str:
    """Say why it cannot be told which experts a model has; empty where it can, or where it has none.

    Args:
        keys: a config's that can be read, less what is null.
        why: of those that cannot, what they have instead.
    """
    if name := next((name for name in _READ if name in why), None):
        return f"its {name} {why[name]}"
    count = next((keys[name] for name in COUNT if name in keys), None)
    if count is None:
        strange = next(_speaking_of_experts(keys), None)
        return f"its config says {strange!r}, and by no name known here how many experts it has" if strange else ""
    if count and (name := next((name for name in _DECIDE if name in why), None)):
        return f"its {name} {why[name]}"
    chosen = keys.get(_TOP_K)
    if count and not chosen:
        return "its config says by no name known here how many experts a token goes to"
    if isinstance(count, int) and isinstance(chosen, int) and chosen > count > 0:
        return f"a token goes to {chosen} experts, and there are {count}"
    return ""


def _speaking_of_experts(keys: Mapping[str, object]) -> Iterator[str]:
    """Yield keys at any depth. One that is 0, false or empty says that there is nothing of the kind."""
    for name, value in keys.items():
        if "expert" in name and value:
            yield name
        elif isinstance(value, Mapping):
            yield from _speaking_of_experts(value)
