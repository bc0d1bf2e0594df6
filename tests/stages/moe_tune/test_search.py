"""The search: what is measured next, what is chosen, and what the files say."""

from collections.abc import Callable

import pytest

from rayprep.model.spec import MoeStrategy
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.search import (
    BEAMS,
    COARSE,
    FINALS,
    Choice,
    choose,
    estimated_seconds,
    first_candidates,
    is_hopeless,
    next_trials,
    on_one_gpu,
    tuning_digest,
)
from rayprep.stages.moe_tune.space import curated, official_space
from rayprep.stages.moe_tune.trial import Measurement, Trial
from tests.model.samples import signature

SHAPE = MoeShape(experts=128, width=768, hidden=2048, top_k=8, dtype="fp8_w8a8", block=(128, 128))
TOKENS = 64
Done = dict[Trial, Measurement]


def config(block_m: int = 16, stages: int = 3, warps: int = 4) -> KernelConfig:
    sizes = {"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    return KernelConfig(**sizes, num_warps=warps, num_stages=stages)


def cost(config: KernelConfig | None) -> float | None:
    """Best at 32 rows, 5 stages and 8 warps, which no short list has; tiles of 256 rows do not run."""
    if config is None:
        return 110.0
    if config.BLOCK_SIZE_M == 256:
        return None
    distance = abs(config.BLOCK_SIZE_M - 32) + 3 * (5 - (config.num_stages or 3)) + (8 - (config.num_warps or 4))
    distance += (abs(config.BLOCK_SIZE_N - 128) + 128 - config.BLOCK_SIZE_K) // 8
    return 50.0 + distance + config.GROUP_SIZE_M / 4


def measured(trial: Trial, us: float | None) -> Measurement:
    return Measurement(trial=trial, us=us, error=None if us else "out of resource")


def search(
    done: Done, candidates: tuple[KernelConfig, ...], *, explore: bool = False, most: int = 10_000
) -> list[tuple[Trial, ...]]:
    """Measures what is asked for, `most` at the most. Returns the rungs."""
    rungs = []
    while most > 0 and (trials := next_trials(candidates, SHAPE, TOKENS, done, explore=explore)):
        rungs.append(trials)
        for trial in trials[:most]:
            done[trial] = measured(trial, cost(trial.config))
        most -= len(trials)
    return rungs


def test_the_best_are_measured_again_and_longer_beside_sglangs_own() -> None:
    rungs = search({}, curated(SHAPE, TOKENS))
    assert [len(rung) for rung in rungs] == [len(curated(SHAPE, TOKENS)) + 1, 8 + 1, 3 + 1]
    assert [{trial.replays for trial in rung} for rung in rungs] == [{COARSE}, {FINALS[0][1]}, {FINALS[1][1]}]
    assert all(rung[0].config is None for rung in rungs)
    best = sorted(curated(SHAPE, TOKENS), key=lambda each: cost(each) or 0)[:3]
    assert {trial.config for trial in rungs[-1]} == {None, *best}


def test_the_neighbourhood_of_the_best_finds_what_no_short_list_has() -> None:
    narrow: Done = {}
    search(narrow, curated(SHAPE, TOKENS))
    wide: Done = {}
    rungs = search(wide, curated(SHAPE, TOKENS), explore=True)
    assert len(rungs) <= 1 + len(BEAMS) + len(FINALS)
    first, second = choose(TOKENS, narrow), choose(TOKENS, wide)
    assert first and second and first.us and second.us
    assert second.us < first.us
    assert len(wide) < 150, "far from the whole space"


def test_a_killed_search_goes_on_and_asks_for_nothing_twice() -> None:
    whole: Done = {}
    search(whole, curated(SHAPE, TOKENS), explore=True)
    for most in (1, 20, 60, 90):
        done: Done = {}
        before = {trial for rung in search(done, curated(SHAPE, TOKENS), explore=True, most=most) for trial in rung}
        kept = set(done)
        asked = {trial for rung in search(done, curated(SHAPE, TOKENS), explore=True) for trial in rung}
        assert not asked & kept, before
        assert done == whole


def test_a_list_of_ones_own_and_configs_that_do_not_run() -> None:
    done: Done = {}
    search(done, (config(256), config(128)))
    chosen = choose(TOKENS, done)
    assert chosen and chosen.config is None, "128 rows are slower than SGLang's own"
    assert sum(each.us is None for each in done.values()) == 1
    assert search(done, (config(256), config(128))) == []
    nothing: Done = {}
    search(nothing, ())
    assert choose(TOKENS, nothing) == Choice(tokens=TOKENS, config=None, us=110.0, stock_us=110.0)


@pytest.mark.parametrize(
    ("own", "speedup"), [(60.0, 1.2), (51.05, 1.021), (51.0, 1.02), (50.95, 1.0), (50.0, 1.0), (49.0, 1.0)]
)
def test_what_is_not_faster_by_two_percent_is_not_used(own: float, speedup: float) -> None:
    """Two measurements of one config differ by half of that."""
    done = {trial: measured(trial, us) for trial, us in _rung(FINALS[-1][1], own)}
    # A lucky coarse measurement counts for nothing.
    done |= {trial: measured(trial, us) for trial, us in _rung(COARSE, 1000.0)}
    chosen = choose(TOKENS, done)
    assert chosen
    assert chosen.config == (config() if speedup > 1 else None)
    assert (chosen.speedup, chosen.stock_us) == (speedup, own)


def test_only_what_was_measured_on_one_gpu_is_compared() -> None:
    rung = _rung(FINALS[-1][1], 51.0)
    done = {trial: measured(trial, us).model_copy(update={"gpu": str(us)}) for trial, us in rung}
    assert choose(TOKENS, done) == Choice(tokens=TOKENS, config=None, us=51.0, stock_us=51.0)


def test_on_one_gpu_is_measured_what_decides_and_the_rest_on_all() -> None:
    trials = [
        Trial(tokens=size, config=each, replays=replays)
        for each in (None, config(), config(64))
        for replays in (COARSE, FINALS[-1][1])
        for size in (8, 1)
    ]
    groups = [group.trials for group in on_one_gpu(trials, {})]
    assert sorted(trial.tokens for group in groups for trial in group) == [1] * 6 + [8] * 6
    assert [len(group) for group in groups] == [1, 3, 1, 1, 1, 3, 1, 1]
    together = [group for group in groups if len(group) > 1]
    assert [(group[0].tokens, group[0].config) for group in together] == [(1, None), (8, None)]


def _rung(replays: int, own: float) -> list[tuple[Trial, float]]:
    return [
        (Trial(tokens=TOKENS, config=None, replays=replays), own),
        (Trial(tokens=TOKENS, config=config(), replays=replays), 50.0),
    ]


def test_where_sglangs_own_does_not_run_the_best_is_taken_and_where_nothing_does_nothing() -> None:
    stock, tuned = (Trial(tokens=TOKENS, config=each, replays=4) for each in (None, config()))
    done = {stock: measured(stock, None), tuned: measured(tuned, 50.0)}
    alone = Choice(tokens=TOKENS, config=config(), us=50.0, stock_us=None, stock_error="out of resource")
    assert choose(TOKENS, done) == alone
    assert choose(TOKENS, {stock: measured(stock, None)}) is None
    assert choose(1, done) is None


def test_a_sweep_tries_everything_and_the_others_the_short_list() -> None:
    of = {strategy: len(first_candidates(strategy, SHAPE, TOKENS)) for strategy in MoeStrategy}
    assert of[MoeStrategy.SWEEP] == len(official_space(SHAPE))
    assert of[MoeStrategy.FIXED] == of[MoeStrategy.AUTO] < 32


@pytest.mark.parametrize("better", [{"cpus": 16, "gpus": 1}, {"cpus": 2, "gpus": 8}])
def test_more_of_anything_is_sooner_done(better: dict[str, int]) -> None:
    guess: Callable[..., float] = estimated_seconds
    sizes = (1, 64, 1024)
    seconds = {each: guess(each, SHAPE, sizes, cpus=2, gpus=1, release=None) for each in MoeStrategy}
    assert seconds[MoeStrategy.FIXED] < seconds[MoeStrategy.AUTO] < seconds[MoeStrategy.SWEEP]
    assert all(guess(each, SHAPE, sizes, **better, release=None) < seconds[each] for each in MoeStrategy)


def test_measurements_of_other_hosts_versions_and_shapes_have_another_log() -> None:
    names = {
        tuning_digest(signature(), SHAPE),
        tuning_digest(signature(triton_version="3.5.1"), SHAPE),
        tuning_digest(signature(device_name="NVIDIA H200"), SHAPE),
        tuning_digest(signature(), SHAPE.model_copy(update={"width": 384})),
    }
    assert len(names) == 4
    assert tuning_digest(signature(driver_version="1"), SHAPE) in names


@pytest.mark.parametrize(
    ("us", "best", "hopeless"),
    [
        (16_000.0, None, False),  # the first of a size is measured, whatever it takes
        (16_000.0, 160.0, True),
        (470.0, 160.0, False),
    ],
)
def test_a_config_far_behind_is_not_measured_to_its_end(us: float, best: float | None, hopeless: bool) -> None:
    assert is_hopeless(us, best) is hopeless
