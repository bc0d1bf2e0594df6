"""The tuner's loop over a bench without a GPU, in which a kernel is named after its config."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.spec import MoeStrategy
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape, default_batch_sizes
from rayprep.stages.child.failures import failure
from rayprep.stages.moe_tune.config_entries import ConfigFiles, Launch, Stock
from rayprep.stages.moe_tune.measurement_log import MeasurementLog
from rayprep.stages.moe_tune.protocol import BenchFacts, Call, KernelJob, RecordedKernels, TunedLine, TuneRequest
from rayprep.stages.moe_tune.search import COARSE, FINALS, SEED, Group
from rayprep.stages.moe_tune.space import curated
from rayprep.stages.moe_tune.trial import Measurement, Trial
from rayprep.stages.moe_tune.tuner import Tuner, Untunable

SHAPE = MoeShape(experts=128, width=768, hidden=2048, top_k=8, dtype="fp8_w8a8", block=(128, 128))


def config(block_m: int, block_n: int, warps: int) -> KernelConfig:
    sizes = {"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": block_n, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    return KernelConfig(**sizes, num_warps=warps, num_stages=3)


SMALL, WIDE, HUGE = config(16, 32, 4), config(64, 256, 4), config(256, 256, 4)


class Bench:
    """The smaller the tile, the faster it runs."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.done: list[str] = []
        self.launched: list[Launch] = []
        self.unused: dict[int, str] = {}

    def open(self) -> BenchFacts:
        return BenchFacts("up.json", "up_down.json", "triton_3_6_0", "3.6.0", "/shipped")

    def stock(self, tokens: int) -> Stock:
        return Stock(config=WIDE)

    def shipped_sizes(self) -> Sequence[int]:
        return (48, 96)

    def record(self, calls: Sequence[Call]) -> Iterator[tuple[Call, RecordedKernels]]:
        for call in calls:
            config = call.up if isinstance(call, Launch) else call.config
            yield call, RecordedKernels((KernelJob("kernels", "fused_moe_kernel", str(config)),))

    def launch(self, launches: Sequence[Launch]) -> Iterator[tuple[Launch, str | None]]:
        for launch in launches:
            self.launched.append(launch)
            yield launch, None

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job in jobs:
            self.compiled.append(job.specialisation)
        # As on many CPUs: what is begun first ends last.
        for job in reversed(jobs):
            self.done.append(f"compiled {job.specialisation}")
            yield job, None

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        for trial in chain.from_iterable(group.trials for group in groups):
            tile = trial.config or WIDE
            self.done.append(f"measured {trial.config}")
            yield Measurement(trial=trial, us=float(tile.BLOCK_SIZE_M * tile.BLOCK_SIZE_N))


def sweep(folder: Path) -> TuneRequest:
    return TuneRequest(
        shape=SHAPE,
        strategy=MoeStrategy.SWEEP,
        sizes=(64,),
        space=(SMALL, WIDE, HUGE),
        log=str(folder / "log"),
        kernels=str(folder),
        seed=SEED,
        gpus=(0,),
        compilers=1,
        capability=90,
        deadline_s=10,
    )


def test_what_takes_longest_to_compile_is_begun_first_and_the_rest_measured_meanwhile(tmp_path: Path) -> None:
    bench = Bench()
    told = Tuner(sweep(tmp_path), bench, MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert bench.compiled == [str(HUGE), str(WIDE), str(SMALL), "None"]
    assert bench.done[:7] == [
        *("compiled None", f"compiled {SMALL}", f"compiled {WIDE}"),
        *("measured None", f"measured {SMALL}", f"measured {WIDE}"),
        f"compiled {HUGE}",
    ]
    assert told.choices[0].config == SMALL
    assert told.counts.gpus == 1


def test_sizes_that_were_not_tuned_keep_what_sglang_ships_for_them(tmp_path: Path) -> None:
    """A server takes the entry of the nearest size: a shipped one left out would get its neighbour's."""
    told = Tuner(sweep(tmp_path), Bench(), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert told.files
    assert told.files.up == {**dict.fromkeys((*default_batch_sizes(()), 48, 96), WIDE), 64: SMALL}


def test_a_size_whose_search_was_stopped_keeps_sglangs_own(tmp_path: Path) -> None:
    """A later run asks for another size, and the log has what was measured of this one."""
    log = MeasurementLog(tmp_path / "log")
    log.append(Measurement(trial=Trial(tokens=8, config=SMALL, replays=COARSE), us=1.0))
    for each, us in ((None, 9.0), (SMALL, 5.0)):
        log.append(Measurement(trial=Trial(tokens=16, config=each, replays=FINALS[-1][1]), us=us))
    told = Tuner(sweep(tmp_path), Bench(), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert told.files
    assert [size for size, config in told.files.up.items() if config == SMALL] == [16, 64]
    assert [(each.tokens, each.strategies) for each in told.choices] == [(16, ()), (64, ())]


class FullDisk(Bench):
    """One of the compilers finds no space."""

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job, _ in super().compile(jobs):
            yield job, "OSError: [Errno 28] No space left on device" if job.specialisation == str(WIDE) else None


def test_a_full_disk_ends_it_and_is_held_against_no_config(tmp_path: Path) -> None:
    with pytest.raises(Untunable, match="No space left") as caught:
        Tuner(sweep(tmp_path), FullDisk(), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert failure(caught.value).error_type is ErrorType.INSUFFICIENT_DISK
    assert MeasurementLog(tmp_path / "log").done == {}
    told = Tuner(sweep(tmp_path), Bench(), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert (told.counts.reused, told.counts.failed) == (0, 0)


class NothingCompiles(Bench):
    """Whatever is asked for."""

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job, _ in super().compile(jobs):
            yield job, "RuntimeError: PassManager::run failed"


def test_what_is_left_of_a_stopped_run_may_all_fail(tmp_path: Path) -> None:
    stopped = MeasurementLog(tmp_path / "log")
    for each in (None, SMALL):
        stopped.append(Measurement(trial=Trial(tokens=64, config=each, replays=COARSE), us=5.0 if each else 9.0))
    rest = tuple(config(256, 256, 4).model_copy(update={"GROUP_SIZE_M": number}) for number in range(1, 9))
    request = sweep(tmp_path).model_copy(update={"space": (SMALL, *rest)})
    told = Tuner(request, NothingCompiles(), MeasurementLog(tmp_path / "log"), lambda line: None)
    told._try(told._next())
    assert sum(each.us is None for each in told.log.done.values()) == len(rest)
    with pytest.raises(Untunable, match="no kernel can be compiled"):
        Tuner(request, NothingCompiles(), MeasurementLog(tmp_path / "other"), lambda line: None).go()


def tune(
    folder: Path, bench: Bench, *sizes: int, strategy: MoeStrategy = MoeStrategy.FIXED, gpus: int = 1
) -> TunedLine:
    """As the stage does, with the log that is there."""
    changes = {"space": (), "strategy": strategy, "sizes": sizes, "gpus": tuple(range(gpus))}
    request = sweep(folder).model_copy(update=changes)
    return Tuner(request, bench, MeasurementLog(folder / "log"), lambda line: None).go()


class UnequalGpus(Bench):
    """Two, which take turns; the first is 3 % slower. SGLang's own is faster than all else by 1 %."""

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        for n, group in enumerate(groups):
            for trial in group.trials:
                tiles = curated(SHAPE, trial.tokens)
                us = 100.0 + tiles.index(trial.config) if trial.config in tiles else 99.0
                gpu = group.gpu or str(n % 2)
                yield Measurement(trial=trial, us=us * (1.0 if gpu == "1" else 1.03), gpu=gpu)


@pytest.mark.parametrize("sizes", [(64,), (1, 64), (1, 8, 64)])
def test_what_is_compared_in_the_end_is_measured_on_one_gpu(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    told = tune(tmp_path, UnequalGpus(), *sizes, gpus=2)
    assert [(each.tokens, each.config, each.speedup) for each in told.choices] == [(size, None, 1.0) for size in sizes]


@pytest.mark.parametrize("lost", range(1, FINALS[-1][0] + 1))
def test_a_stopped_run_goes_on_with_what_decides_on_the_gpu_that_has_begun_it(tmp_path: Path, lost: int) -> None:
    whole = tune(tmp_path, UnequalGpus(), 64, gpus=2)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:-lost]))
    told = tune(tmp_path, UnequalGpus(), 64, gpus=2)
    assert (told.counts.measured, told.choices) == (lost, whole.choices)


def test_where_that_gpu_is_gone_what_decides_is_measured_anew(tmp_path: Path) -> None:
    class Another(UnequalGpus):
        def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
            for each in super().measure([group._replace(gpu="1") for group in groups]):
                yield each.model_copy(update={"gpu": "another"})

    tune(tmp_path, UnequalGpus(), 64)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:-1]))
    told = tune(tmp_path, Another(), 64)
    assert told.counts.measured == FINALS[-1][0] + 1
    assert (told.choices[0].config, told.choices[0].stock_us) == (None, 99.0)


def test_the_file_of_a_model_does_not_depend_on_who_asks_last(tmp_path: Path) -> None:
    first, second = tune(tmp_path, Bench(), 1), tune(tmp_path, Bench(), 8)
    assert [each.tokens for each in first.choices] == [1]
    assert [each.tokens for each in second.choices] == [1, 8]
    again = tune(tmp_path, Bench(), 1)
    assert (again.files, again.choices) == (second.files, second.choices)
    assert again.counts.measured == 0


def test_a_shorter_search_undoes_no_longer_one(tmp_path: Path) -> None:
    long = tune(tmp_path, Bench(), 64, strategy=MoeStrategy.AUTO)
    assert long.choices[0].strategies == (MoeStrategy.FIXED, MoeStrategy.AUTO)
    short = tune(tmp_path, Bench(), 64, strategy=MoeStrategy.FIXED)
    assert (short.files, short.choices, short.counts.measured) == (long.files, long.choices, 0)
    longest = tune(tmp_path, Bench(), 64, strategy=MoeStrategy.SWEEP)
    assert set(longest.choices[0].strategies) == set(MoeStrategy)


class StockFails(Bench):
    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        for each in super().measure(groups):
            yield each if each.trial.config else Measurement(trial=each.trial, error=self.error)


def test_nothing_is_chosen_where_sglangs_own_could_not_be_measured_this_time(tmp_path: Path) -> None:
    with pytest.raises(Untunable, match="SGLang's own config was not measured for 64 tokens: Runtime") as caught:
        tune(tmp_path, StockFails("RuntimeError: Triton Error [CUDA]: out of memory"), 64)
    assert failure(caught.value).error_type is ErrorType.OOM_DURING_WARMUP
    told = tune(tmp_path, Bench(), 64)
    assert told.choices[0].stock_us
    assert told.warnings == ()


class Crowded(Bench):
    """Somebody else takes the memory while one config is measured."""

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        for each in super().measure(groups):
            full = each.trial.config == curated(SHAPE, 64)[0]
            yield Measurement(trial=each.trial, error="OutOfMemoryError: CUDA out of memory") if full else each


def test_what_was_missed_for_want_of_memory_is_said(tmp_path: Path) -> None:
    told = tune(tmp_path, Crowded(), 64)
    reason = "OutOfMemoryError: CUDA out of memory"
    assert told.warnings == (f"1 measurements failed for a reason that may pass, such as {reason}",)
    other = tune(tmp_path, Bench(), 8)
    assert [each.strategies for each in other.choices] == [(MoeStrategy.FIXED,)] * 2, "which undoes nothing"
    assert other.warnings == ()
    again = tune(tmp_path, Bench(), 64)
    assert again.counts.measured > 0
    assert again.warnings == ()


def test_where_sglangs_own_never_runs_it_is_said_that_nothing_was_compared(tmp_path: Path) -> None:
    error = "OutOfResources: out of resource: shared memory, Required: 294912, Hardware limit: 232448"
    for _ in range(2):
        told = tune(tmp_path, StockFails(error), 64)
        assert (told.choices[0].stock_us, told.choices[0].config is None) == (None, False)
        assert told.warnings == (
            f"SGLang's own config does not run for 64 tokens, and what was tuned stands alone: {error}",
        )
    assert told.counts.measured == 0, "it is remembered"


SHARED_MEMORY = "OutOfResources: out of resource: shared memory, Required: 294912, Hardware limit: 232448"


class Unlaunchable(Bench):
    """Some configs run while they are measured, and not as a server launches them with more than `above` tokens."""

    def __init__(self, *unfit: KernelConfig, stock: dict[int, KernelConfig] | None = None, above: int = 0) -> None:
        super().__init__()
        self.unfit, self._stock, self.above, self.error = unfit, stock or {}, above, SHARED_MEMORY

    def stock(self, tokens: int) -> Stock:
        return Stock(config=self._stock.get(tokens, WIDE))

    def launch(self, launches: Sequence[Launch]) -> Iterator[tuple[Launch, str | None]]:
        for launch, _ in super().launch(launches):
            yield launch, self.error if launch.up in self.unfit and launch.tokens > self.above else None


def entries(told: TunedLine) -> dict[int, KernelConfig]:
    assert told.files
    return dict(told.files.up)


def test_an_entry_that_cannot_be_launched_gives_way_to_sglangs_own(tmp_path: Path) -> None:
    request = sweep(tmp_path).model_copy(update={"sizes": (1, 64)})
    told = Tuner(request, Unlaunchable(SMALL), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert told.files is None, "nothing of ours is left"
    assert [(entry.batch_size, entry.own_runs, entry.config) for entry in told.refused] == [
        (64, True, SMALL.entry()),
        (1, True, SMALL.entry()),
    ]
    assert all(entry.error.startswith(SHARED_MEMORY) for entry in told.refused)
    assert [(choice.tokens, choice.config, choice.speedup) for choice in told.choices] == [
        (1, None, 1.0),
        (64, None, 1.0),
    ]


def test_an_entry_of_sglangs_own_that_cannot_be_launched_is_left_out(tmp_path: Path) -> None:
    """And what its neighbours take in its place is launched, too."""
    bench = Unlaunchable(HUGE, stock={48: HUGE})
    told = Tuner(sweep(tmp_path), bench, MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert 48 not in entries(told)
    assert entries(told)[64] == SMALL
    assert [(entry.batch_size, entry.own_runs) for entry in told.refused] == [(48, False)]
    launched = {(launch.tokens, launch.up) for launch in bench.launched}
    assert {(48, WIDE), (49, SMALL)} <= launched, "32 and 64 are the nearest now"


def test_where_sglangs_own_fails_as_well_both_say_that_the_neighbours_count(tmp_path: Path) -> None:
    bench = Unlaunchable(SMALL, HUGE, stock={64: HUGE}, above=16)
    told = Tuner(
        sweep(tmp_path).model_copy(update={"sizes": (1, 64)}),
        bench,
        MeasurementLog(tmp_path / "log"),
        lambda line: None,
    ).go()
    assert (64 in entries(told), entries(told)[1]) == (False, SMALL)
    assert [(entry.batch_size, entry.own_runs) for entry in told.refused] == [(64, False), (64, False)]
    assert [entry.config for entry in told.refused] == [SMALL.entry(), HUGE.entry()]


def test_what_says_nothing_of_an_entry_is_held_against_none(tmp_path: Path) -> None:
    bench = Unlaunchable(WIDE)
    bench.error = "OutOfMemoryError: CUDA out of memory"
    with pytest.raises(Untunable, match="could not be tried: OutOfMemoryError") as caught:
        Tuner(sweep(tmp_path), bench, MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert failure(caught.value).error_type is ErrorType.OOM_DURING_WARMUP


class Picky(Bench):
    """What is served is compiled in a way in which one config cannot be."""

    def record(self, calls: Sequence[Call]) -> Iterator[tuple[Call, RecordedKernels]]:
        for call, recorded in super().record(calls):
            (job,) = recorded.jobs
            name = "served" if isinstance(call, Launch) and call.up == SMALL else "measured"
            yield call, RecordedKernels((job._replace(name=name),))

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job, _ in super().compile(jobs):
            yield job, "PassManager::run failed" if job.name == "served" else None


def test_an_entry_that_cannot_be_compiled_is_not_launched(tmp_path: Path) -> None:
    bench = Picky()
    request = sweep(tmp_path).model_copy(update={"given": ConfigFiles(up={8: WIDE, 64: SMALL}), "sizes": ()})
    told = Tuner(request, bench, MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert SMALL not in {launch.up for launch in bench.launched}
    assert [(entry.batch_size, entry.error[:11]) for entry in told.refused] == [(64, "PassManager")]
    assert told.files is None


def test_what_gains_too_little_leaves_no_file(tmp_path: Path) -> None:
    bench = UnequalGpus()
    told = tune(tmp_path, bench, 64, gpus=2)
    assert (told.files, told.refused, bench.launched) == (None, (), [])
    assert [choice.config for choice in told.choices] == [None]
    assert told.choices[0].strategies == (MoeStrategy.FIXED,), "which is not searched again"
