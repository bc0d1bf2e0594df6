"""The tuner's loop over a bench without a GPU, in which a kernel is named after its config."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rayprep.model.errors import ErrorType
from rayprep.model.moe import MoeShape
from rayprep.model.moe_search import COARSE, FINALS, SEED, Measurement, Stock, Trial
from rayprep.model.moe_space import KernelConfig
from rayprep.model.spec import MoeStrategy
from rayprep.stages.moe_log import MeasurementLog
from rayprep.stages.moe_tune_protocol import BenchFacts, KernelJob, Recorded, TuneRequest, failure
from rayprep.stages.moe_tuner import Tuner, Untunable

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

    def open(self) -> BenchFacts:
        return BenchFacts("up.json", "up_down.json", "triton_3_6_0", "3.6.0", "/shipped")

    def stock(self, tokens: int) -> Stock:
        return Stock(config=WIDE)

    def shipped_sizes(self) -> Sequence[int]:
        return (48, 96)

    def record(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Recorded]]:
        for trial in trials:
            yield trial, Recorded((KernelJob("kernels", "fused_moe_kernel", str(trial.config)),))

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job in jobs:
            self.compiled.append(job.specialisation)
        # As on many CPUs: what is begun first ends last.
        for job in reversed(jobs):
            self.done.append(f"compiled {job.specialisation}")
            yield job, None

    def measure(self, trials: Sequence[Trial]) -> Iterator[Measurement]:
        for trial in trials:
            tile = trial.config or WIDE
            self.done.append(f"measured {trial.config}")
            yield Measurement(trial=trial, us=float(tile.BLOCK_SIZE_M * tile.BLOCK_SIZE_N))


def sweep(folder: Path) -> TuneRequest:
    return TuneRequest(
        shape=SHAPE,
        strategy=MoeStrategy.SWEEP,
        sizes=(64,),
        all_sizes=(64,),
        space=(SMALL, WIDE, HUGE),
        log=str(folder / "log"),
        kernels=str(folder),
        seed=SEED,
        gpus=1,
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
    assert told.files.up == {48: WIDE, 64: SMALL, 96: WIDE}


def test_a_size_whose_search_was_stopped_keeps_sglangs_own(tmp_path: Path) -> None:
    """A later run asks for another size, and the log has what was measured of this one."""
    log = MeasurementLog(tmp_path / "log")
    log.append(Measurement(trial=Trial(tokens=8, config=SMALL, replays=COARSE), us=1.0))
    for each, us in ((None, 9.0), (SMALL, 5.0)):
        log.append(Measurement(trial=Trial(tokens=16, config=each, replays=FINALS[-1][1]), us=us))
    told = Tuner(sweep(tmp_path), Bench(), MeasurementLog(tmp_path / "log"), lambda line: None).go()
    assert told.files.up == {16: SMALL, 48: WIDE, 64: SMALL, 96: WIDE}


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
