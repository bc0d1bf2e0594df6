"""What a config file says for each number of tokens, tuned or not, and what a server compiles for it. Pure."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from rayprep.model.base import Record
from rayprep.model.moe import MoeShape
from rayprep.model.moe_search import Choice
from rayprep.model.moe_space import KernelConfig, specialisation
from rayprep.model.moe_trial import Trial


class Stock(Record):
    """What SGLang runs for a number of tokens without us."""

    config: KernelConfig
    down: KernelConfig | None = None
    """Of the second product, where a file of its own says so."""


class ConfigFiles(Record):
    """The contents of the config file and of its `_down` twin, which is None where SGLang has none to be overruled."""

    up: dict[int, KernelConfig]
    down: dict[int, KernelConfig] | None = None


def config_files(sizes: Iterable[int], choices: Iterable[Choice], stock: Mapping[int, Stock]) -> ConfigFiles:
    """What the files say. SGLang takes the entry of the nearest size, so a size that was not tuned has to be there,
    too: with SGLang's own values, or its neighbours' would count.

    Both products of a tuned entry were measured with one config. Where SGLang ships a file for the second one, it
    would overrule that, so ours gets a twin that says the same.
    """
    tuned = {choice.tokens: choice.config for choice in choices if choice.config}
    up, down = {}, {}
    for size in sorted(sizes):
        own = stock[size]
        up[size] = tuned.get(size) or own.config
        kept = own.down.model_copy(update={"BLOCK_SIZE_M": own.config.BLOCK_SIZE_M}) if own.down else own.config
        down[size] = tuned.get(size) or kept
    overruled = any(own.down for own in stock.values())
    return ConfigFiles(up=up, down=down if overruled else None)


def served_trials(entries: Mapping[int, KernelConfig], shape: MoeShape) -> tuple[Trial, ...]:
    """One call for each way in which a server with this file specialises one of its configs, the smallest of each."""
    found: dict[object, Trial] = {}
    sizes = sorted(entries)
    # What is compiled in comes back every 16 tokens, but where experts' rows begin to be padded, or the entry is new.
    begins = (1, shape.experts // shape.top_k + 1, *(sum(pair) // 2 + 1 for pair in pairwise(sizes)))
    for tokens in sorted({begin + n for begin in begins for n in range(16)}):
        config = entries[min(sizes, key=lambda size: abs(size - tokens))]
        kind = config, specialisation(shape, tokens, config.BLOCK_SIZE_M)
        if tokens <= sizes[-1]:
            found.setdefault(kind, Trial(tokens=tokens, config=config, replays=1))
    return tuple(found.values())
