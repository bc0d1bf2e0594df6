"""What a model's `config.json` calls its experts: each family of models has keys of its own for the same numbers.

Read in sglang 0.5.16's `srt/models`: `qwen3_moe.py`, `deepseek_v2.py`, `mixtral.py`, `ernie4.py`, `step3_vl.py`,
`longcat_flash.py`, `hunyuan.py`, `kimi_linear.py`, `gemma4_causal.py`, `zaya.py` and `dbrx.py`.
"""

from collections.abc import Iterator, Mapping

COUNT = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts"),
    *("moe_topk", "moe_top_k", "moe_k", "moe_router_topk"),
)
WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
_ALL = (*COUNT, *TOP_K, *WIDTH)


def flattened(keys: Mapping[str, object]) -> dict[str, object]:
    """With DBRX's inner `ffn_config` as others have it, and a list of one number for all layers as that number."""
    inner = keys.get("ffn_config")
    found = dict(keys)
    if isinstance(inner, Mapping) and inner.get("moe_num_experts"):
        found |= {name: inner[name] for name in ("moe_num_experts", "moe_top_k") if name in inner}
        found |= {WIDTH[0]: inner["ffn_hidden_size"]} if "ffn_hidden_size" in inner else {}
    for name in _ALL:
        value = found.get(name)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            found[name] = value[0]
    return found


def differing(keys: Mapping[str, object]) -> tuple[str, ...]:
    """Those that are still a list, of another number for each layer."""
    return tuple(name for name in _ALL if isinstance(keys.get(name), list))


def unread(keys: Mapping[str, object]) -> str:
    """Why it cannot be told which experts a model has; empty where it can, or where it has none.

    Args:
        keys: flattened, less what is null.
    """
    if lists := differing(keys):
        return f"its layers differ in {', '.join(lists)}"
    count = next((keys[name] for name in COUNT if name in keys), None)
    if count is None:
        strange = next(_speaking_of_experts(keys), None)
        return f"its config says {strange!r}, and by no name known here how many experts it has" if strange else ""
    if count and not any(keys.get(name) for name in TOP_K):
        return "its config says by no name known here how many experts a token goes to"
    return ""


def _speaking_of_experts(keys: Mapping[str, object]) -> Iterator[str]:
    """Keys at any depth. One that is 0, false or empty says that there is nothing of the kind."""
    for name, value in keys.items():
        if "expert" in name and value:
            yield name
        elif isinstance(value, Mapping):
            yield from _speaking_of_experts(value)
