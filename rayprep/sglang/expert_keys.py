"""What a model's `config.json` calls its experts, for the families of `experts`.

Read in sglang 0.5.16's `srt/models`: `qwen3_moe.py`, `deepseek_v2.py`, `glm4_moe.py` and `mixtral.py`.
"""

from collections.abc import Collection, Iterator, Mapping

COUNT = ("num_experts", "n_routed_experts", "num_local_experts")
_TOP_K = "num_experts_per_tok"
_READ = (*COUNT, _TOP_K, "moe_intermediate_size")


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
    if count and not keys.get(_TOP_K):
        return "its config says by no name known here how many experts a token goes to"
    return ""


def _speaking_of_experts(keys: Mapping[str, object]) -> Iterator[str]:
    """Yield keys at any depth. One that is 0, false or empty says that there is nothing of the kind."""
    for name, value in keys.items():
        if "expert" in name and value:
            yield name
        elif isinstance(value, Mapping):
            yield from _speaking_of_experts(value)
