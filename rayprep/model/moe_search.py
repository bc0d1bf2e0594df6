"""Which measurement a tuning makes next, and what its measurements say in the end. All of it pure.

What is to be measured follows from what was measured, so that a run that was killed goes on where it was: it reads
its log and asks again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from pydantic import Field

from rayprep.model.base import Record
from rayprep.model.moe import MoeShape
from rayprep.model.moe_space import KernelConfig, curated, neighbours, official_space, specialisation
from rayprep.model.signature import Signature
from rayprep.model.spec import MoeStrategy

TUNER_VERSION = "3"
"""Of the method: measurements of another one are not compared with ours."""
SEED = 0
"""Of the made-up weights, inputs and routings."""

COARSE = 4
FINALS = ((8, 12), (3, 36))
"""Successive halving: so many of the best are measured again, with so many replays each."""
BEAMS = (4, 2, 1)
"""Of how many of the best the neighbourhood is tried, round after round."""

_HOPELESS = 3.0
"""So many times as slow as the best, a config is not measured to its end."""

# Measured on an H200 with 16 cores: what importing and the first kernels take, a config's two kernels, a measurement.
_SETUP_S, _COMPILE_S, _MEASURE_S = 45.0, 2.4, 0.05
_NEAR_EACH = 8
"""Neighbours of one config that are new, about."""


class Trial(Record):
    """One thing to measure. Without a config it is what SGLang would run by itself."""

    tokens: int = Field(gt=0)
    config: KernelConfig | None
    replays: int = Field(gt=0)


class Measurement(Record):
    """One line of a tuning's log."""

    trial: Trial
    us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Microseconds of one call of the layer: the median over the replays. None where it cannot run."""
    error: str | None = None
    cut: bool = False
    """It was so far behind that it was run once."""


Done = Mapping[Trial, Measurement]


class Stock(Record):
    """What SGLang runs for a number of tokens without us."""

    config: KernelConfig
    down: KernelConfig | None = None
    """Of the second product, where a file of its own says so."""


class Choice(Record):
    """What a batch of `tokens` gets. Without a config it keeps what SGLang would run."""

    tokens: int
    config: KernelConfig | None
    us: float | None
    stock_us: float | None

    @property
    def speedup(self) -> float | None:
        return round(self.stock_us / self.us, 4) if self.us and self.stock_us else None


class ConfigFiles(Record):
    """The contents of the config file and of its `_down` twin, which is None where SGLang has none to be overruled."""

    up: dict[int, KernelConfig]
    down: dict[int, KernelConfig] | None = None


def tuning_digest(signature: Signature, shape: MoeShape) -> str:
    """Names the log of all measurements that can be compared with one another."""
    host = (signature.device_name, signature.triton_version, signature.torch_version, signature.sglang_version)
    whole = json.dumps([TUNER_VERSION, SEED, *host, shape.model_dump()], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def first_candidates(strategy: MoeStrategy, shape: MoeShape, tokens: int) -> tuple[KernelConfig, ...]:
    return official_space(shape) if strategy is MoeStrategy.SWEEP else curated(shape, tokens)


def next_trials(
    candidates: Sequence[KernelConfig], shape: MoeShape, tokens: int, done: Done, *, explore: bool
) -> tuple[Trial, ...]:
    """What is to be measured next for batches of `tokens`; empty when all has been.

    Args:
        explore: try the neighbourhood of the best, too.
    """
    for rung in _rungs(tuple(candidates), shape, tokens, done, explore=explore):
        if missing := tuple(trial for trial in rung if trial not in done):
            return missing
    return ()


def _rungs(
    candidates: tuple[KernelConfig, ...], shape: MoeShape, tokens: int, done: Done, *, explore: bool
) -> Iterator[tuple[Trial, ...]]:
    """One rung is asked for only when all of the former has been measured."""
    yield _trials(tokens, candidates, COARSE)
    for beam in BEAMS if explore else ():
        near = neighbours(best(candidates, tokens, COARSE, done)[:beam], shape)
        fresh = tuple(config for config in near if config not in set(candidates))
        yield _trials(tokens, fresh, COARSE)
        candidates += fresh
    replays = COARSE
    for keep, more in FINALS:
        candidates = best(candidates, tokens, replays, done)[:keep]
        replays = more
        yield _trials(tokens, candidates, replays)


def _trials(tokens: int, configs: Iterable[KernelConfig], replays: int) -> tuple[Trial, ...]:
    """SGLang's own goes along on every rung: times of different rungs are not compared."""
    return tuple(Trial(tokens=tokens, config=config, replays=replays) for config in (None, *configs))


def best(configs: Iterable[KernelConfig], tokens: int, replays: int, done: Done) -> tuple[KernelConfig, ...]:
    """Those that ran, the fastest first."""
    times = {config: _us(Trial(tokens=tokens, config=config, replays=replays), done) for config in configs}
    ran = [(us, str(config), config) for config, us in times.items() if us is not None]
    return tuple(config for _, _, config in sorted(ran, key=lambda each: each[:2]))


def _us(trial: Trial, done: Done) -> float | None:
    return done[trial].us if trial in done else None


def choose(tokens: int, done: Done) -> Choice | None:
    """The fastest on the last rung that was measured; SGLang's own where nothing is faster. None where nothing ran."""
    of_size = [each for each in done.values() if each.trial.tokens == tokens and each.us is not None]
    last = max((each.trial.replays for each in of_size if each.trial.config is None), default=None)
    if last is None:
        last = max((each.trial.replays for each in of_size), default=None)
    rung = [each for each in of_size if each.trial.replays == last]
    if not rung:
        return None
    stock = next((each.us for each in rung if each.trial.config is None), None)
    fastest = min(rung, key=lambda each: (each.us or 0.0, each.trial.config is not None, str(each.trial.config)))
    return Choice(tokens=tokens, config=fastest.trial.config, us=fastest.us, stock_us=stock)


def is_compared(tokens: int, done: Done) -> bool:
    """Whether a size's search came to its end: on the last rung SGLang's own config is measured beside the best."""
    own = done.get(Trial(tokens=tokens, config=None, replays=FINALS[-1][1]))
    return own is not None and own.us is not None


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


def is_hopeless(us: float, best_us: float | None) -> bool:
    """Whether a config is not worth its whole measurement.

    Args:
        us: one call, in microseconds.
        best_us: the best that was measured for this number of tokens; None for the first.
    """
    return best_us is not None and us > _HOPELESS * best_us


def kernels(configs: Iterable[KernelConfig], shape: MoeShape, sizes: Iterable[int]) -> int:
    """How many times a config has to be compiled: once for each way that the sizes specialise it."""
    sizes = tuple(sizes)
    return len({(config, specialisation(shape, size, config.BLOCK_SIZE_M)) for config in configs for size in sizes})


def estimated_seconds(strategy: MoeStrategy, shape: MoeShape, sizes: Sequence[int], cpus: int, gpus: int) -> float:
    """A first guess of what a tuning takes on so many CPUs and GPUs."""
    pairs = {
        (config, specialisation(shape, size, config.BLOCK_SIZE_M)): None
        for size in sizes
        for config in first_candidates(strategy, shape, size)
    }
    trials = sum(len(first_candidates(strategy, shape, size)) for size in sizes)
    near = _NEAR_EACH * sum(BEAMS) * len(sizes) if strategy is MoeStrategy.AUTO else 0
    return _SETUP_S + (len(pairs) + near / 2) * _COMPILE_S / cpus + (trials + near) * _MEASURE_S / gpus
