"""Which measurement a tuning makes next, and what its measurements say in the end. All of it pure.

What is to be measured follows from what was measured, so that a run that was killed goes on where it was: it reads
its log and asks again.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from rayprep.base.records import Record
from rayprep.model.signature import Signature
from rayprep.model.spec import MoeStrategy
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.space import curated, neighbours, official_space, specialisation
from rayprep.stages.moe_tune.trial import Done, Trial

TUNER_VERSION = "5"
"""Of the method: measurements of another one are not compared with ours."""
SEED = 0
"""Of the made-up weights, inputs and routings."""

COARSE = 4
FINALS = ((8, 12), (3, 36))
"""Successive halving: so many of the best are measured again, with so many replays each."""
_LAST = FINALS[-1][1]
BEAMS = (4, 2, 1)
"""Of how many of the best the neighbourhood is tried, round after round."""

_CONTAINED = {
    MoeStrategy.FIXED: (MoeStrategy.FIXED,),
    MoeStrategy.AUTO: (MoeStrategy.FIXED, MoeStrategy.AUTO),
    MoeStrategy.SWEEP: (MoeStrategy.FIXED, MoeStrategy.AUTO, MoeStrategy.SWEEP),
}
"""A longer search does what is asked of a shorter one."""

WORTH = 1.02
"""So many times as fast as SGLang's own a config has to be, or that stays: measurements of one config differ by 1 %."""
_HOPELESS = 3.0
"""So many times as slow as the best, a config is not measured to its end."""

# Measured on an H200 with 16 cores: what importing and the first kernels take, a config's two kernels, a measurement.
_SETUP_S, _COMPILE_S, _MEASURE_S = 45.0, 2.4, 0.05
_NEAR_EACH = 8
"""Neighbours of one config that are new, about."""


class Choice(Record):
    """What a batch of `tokens` gets. Without a config it keeps what SGLang would run."""

    tokens: int
    config: KernelConfig | None
    us: float | None
    stock_us: float | None
    stock_error: str | None = None
    """Why there is no `stock_us`: nothing was compared with what SGLang would run."""
    strategies: tuple[MoeStrategy, ...] = ()
    """Those whose search for this size came to its end."""

    @property
    def speedup(self) -> float | None:
        return round(self.stock_us / self.us, 4) if self.us and self.stock_us else None


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
        if rung and is_final(rung[0]) and len(_gpus(rung, done)) > 1:
            return rung  # that of a stopped run was not there any more, or had part of an earlier search alone
    return ()


def finished(shape: MoeShape, tokens: int, done: Done) -> tuple[MoeStrategy, ...]:
    """The strategies of which nothing is left to do for batches of `tokens`."""
    ended = (
        strategy
        for strategy in MoeStrategy
        if not next_trials(
            first_candidates(strategy, shape, tokens), shape, tokens, done, explore=strategy is MoeStrategy.AUTO
        )
    )
    return tuple(dict.fromkeys(each for strategy in ended for each in _CONTAINED[strategy]))


class Group(NamedTuple):
    """What one GPU measures, one after another."""

    trials: tuple[Trial, ...]
    gpu: str = ""
    """The one that has measured what these are compared with, where there is one."""


def on_one_gpu(trials: Iterable[Trial], done: Done) -> tuple[Group, ...]:
    """The trials by who measures them: a rung that decides stays together, also where a stopped run has begun it.

    Many a coarse one is all the work there is, so that every GPU takes of it.
    """
    dealt: dict[object, list[Trial]] = {}
    # By size: the inputs of a size are made once.
    for trial in sorted(trials, key=lambda trial: trial.tokens):
        dealt.setdefault((trial.tokens, trial.replays) if is_final(trial) else trial, []).append(trial)
    return tuple(Group(tuple(group), _begun_by(group, done)) for group in dealt.values())


def _begun_by(group: Sequence[Trial], done: Done) -> str:
    tokens, replays = group[0].tokens, group[0].replays
    if not is_final(group[0]):  # of a sweep there are thousands
        return ""
    gpus = _gpus([trial for trial in done if (trial.tokens, trial.replays) == (tokens, replays)], done)
    return gpus.pop() if len(gpus) == 1 else ""


def _gpus(rung: Sequence[Trial], done: Done) -> set[str]:
    return {done[trial].gpu for trial in rung if done[trial].us}


def is_final(trial: Trial) -> bool:
    return trial.replays > COARSE


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
    """The fastest of those that were measured together with SGLang's own, on the last rung on which that ran; SGLang's
    own where nothing is faster by WORTH.

    Where that ran on none of them the fastest of the last rung. None where nothing ran.
    """
    of_size = [each for each in done.values() if each.trial.tokens == tokens]
    own = sorted((each for each in of_size if each.trial.config is None), key=lambda each: each.trial.replays)
    beside = next((each for each in reversed(own) if each.us and is_final(each.trial)), None)
    ran = [each for each in of_size if each.us]
    last = beside.trial.replays if beside else max((each.trial.replays for each in ran), default=None)
    rung = [each for each in ran if each.trial.replays == last and (beside is None or each.gpu == beside.gpu)]
    if not rung:
        return None
    fastest = min(rung, key=lambda each: (each.us or 0.0, each.trial.config is not None, str(each.trial.config)))
    if beside and (beside.us or 0.0) < WORTH * (fastest.us or 0.0):
        fastest = beside
    return Choice(
        tokens=tokens,
        config=fastest.trial.config,
        us=fastest.us,
        stock_us=beside.us if beside else None,
        stock_error=None if beside or not own else own[-1].error,
    )


def choices(asked: Iterable[int], shape: MoeShape, done: Done) -> tuple[Choice, ...]:
    """For the sizes that are asked for, and those of earlier runs whose search came to its end. None where nothing ran.

    All of them are in the one file that a model's servers read, or a run for one size would undo another's.
    """
    sizes = {*asked, *(trial.tokens for trial in done if is_compared(trial.tokens, done))}
    found = (choose(size, done) for size in sorted(sizes))
    return tuple(
        each.model_copy(update={"strategies": finished(shape, each.tokens, done)}) for each in found if each is not None
    )


def with_own(choices: Iterable[Choice], sizes: Collection[int]) -> tuple[Choice, ...]:
    """Return the choices, of these sizes with what SGLang would run."""
    return tuple(
        choice.model_copy(update={"config": None, "us": choice.stock_us}) if choice.tokens in sizes else choice
        for choice in choices
    )


def is_compared(tokens: int, done: Done) -> bool:
    """Whether a size's search came to its end: on the last rung SGLang's own config goes along with the best."""
    own = done.get(Trial(tokens=tokens, config=None, replays=_LAST))
    return own is not None and not own.may_pass


def is_hopeless(us: float, best_us: float | None) -> bool:
    """Whether a config is not worth its whole measurement.

    Args:
        us: one call, in microseconds.
        best_us: the best that was measured for this number of tokens; None for the first.
    """
    return best_us is not None and us > _HOPELESS * best_us


def kernels(configs: Iterable[KernelConfig], shape: MoeShape, sizes: Iterable[int], release: str | None) -> int:
    """How many times a config has to be compiled: once for each way that the sizes specialise it."""
    pairs = product(configs, tuple(sizes))
    return len({(config, specialisation(shape, size, config.BLOCK_SIZE_M, release)) for config, size in pairs})


def estimated_seconds(
    strategy: MoeStrategy, shape: MoeShape, sizes: Sequence[int], cpus: int, gpus: int, release: str | None
) -> float:
    """A first guess of what a tuning takes on so many CPUs and GPUs, with this release of SGLang."""
    pairs = {
        (config, specialisation(shape, size, config.BLOCK_SIZE_M, release)): None
        for size in sizes
        for config in first_candidates(strategy, shape, size)
    }
    trials = sum(len(first_candidates(strategy, shape, size)) for size in sizes)
    near = _NEAR_EACH * sum(BEAMS) * len(sizes) if strategy is MoeStrategy.AUTO else 0
    return _SETUP_S + (len(pairs) + near / 2) * _COMPILE_S / cpus + (trials + near) * _MEASURE_S / gpus
