"""What a config file says for each number of tokens, tuned or not, and which calls a server makes with it. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from rayprep.base.records import Record
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.search import Choice
from rayprep.stages.moe_tune.space import Way, specialisation, turning_points

LARGEST_BATCH = 16384
"""Tokens that SGLang prefills at a time at most, where no chunk is set (`max_prefill_tokens` of its ServerArgs)."""


class Stock(Record):
    """What SGLang runs for a number of tokens without us."""

    config: KernelConfig
    down: KernelConfig | None = None
    """Of the second product, where a file of its own says so."""

    @property
    def second(self) -> KernelConfig:
        """What the second product runs with: both share one sorting by tiles, so that the first one's rows count."""
        return self.down.model_copy(update={"BLOCK_SIZE_M": self.config.BLOCK_SIZE_M}) if self.down else self.config


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
    up = {size: tuned.get(size) or stock[size].config for size in sorted(sizes)}
    down = {size: tuned.get(size) or stock[size].second for size in sorted(sizes)}
    overruled = any(own.down for own in stock.values())
    return ConfigFiles(up=up, down=down if overruled else None)


def without(files: ConfigFiles, failing: Collection[int], stock: Mapping[int, Stock]) -> ConfigFiles | None:
    """The files with SGLang's own values in place of the `failing` entries, and without an entry whose own values fail,
    too: its neighbours' count there. None where nothing is left that SGLang would not do by itself.
    """
    up, down = dict(files.up), dict(files.down) if files.down else None
    for size in failing:
        own = stock[size]
        is_own = up.pop(size) == own.config
        is_own &= down is None or down.pop(size) == own.second
        if not is_own:
            up[size] = own.config
            if down is not None:
                down[size] = own.second
    differs = any(config != stock[size].config for size, config in up.items())
    differs |= any(config != stock[size].second for size, config in (down or {}).items())
    dropped = up.keys() != files.up.keys()
    return ConfigFiles(up=_sorted(up), down=_sorted(down) if down else None) if up and (differs or dropped) else None


def _sorted(entries: Mapping[int, KernelConfig]) -> dict[int, KernelConfig]:
    return dict(sorted(entries.items()))


class Launch(Record):
    """One call of the layer, as a server makes it that reads these entries."""

    tokens: int
    up: KernelConfig
    """The first product's entry."""
    down: KernelConfig | None = None
    """The second one's, where a file of its own has it."""


def launches(files: ConfigFiles, shape: MoeShape, release: str | None) -> dict[int, tuple[Launch, ...]]:
    """The calls by which a file is tried, by entry.

    Each entry is called with the least and the most tokens that take it, and with the least for each way in which its
    kernels are specialised by this release of SGLang.
    """
    calls = {}
    for size, (low, high) in _ranges(sorted(files.up)).items():
        up, down = files.up[size], files.down[size] if files.down else None
        ways: dict[Way, int] = {}
        for tokens in _first_of_each_way(low, high, shape):
            ways.setdefault(specialisation(shape, tokens, up.BLOCK_SIZE_M, release), tokens)
        calls[size] = tuple(Launch(tokens=tokens, up=up, down=down) for tokens in sorted({*ways.values(), high}))
    return calls


def _ranges(sizes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """The least and the most tokens that take each entry: SGLang takes the nearest, and of two the first."""
    middles = [sum(pair) // 2 for pair in pairwise(sizes)]
    lows = [1, *(middle + 1 for middle in middles)]
    highs = [*middles, max(LARGEST_BATCH, *sizes)]
    return dict(zip(sizes, zip(lows, highs, strict=True), strict=True))


def _first_of_each_way(low: int, high: int, shape: MoeShape) -> Iterator[int]:
    """Yield numbers of tokens among which each way of specialising is."""
    for begin in (low, *(turn for turn in turning_points(shape) if low < turn <= high)):
        yield from range(begin, min(begin + 16, high + 1))
