"""The tuner's loop: asks what is to be measured next, has it compiled ahead and measured, and keeps each result."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from rayprep.model.moe_search import (
    Choice,
    Measurement,
    Stock,
    Trial,
    choose,
    config_files,
    first_candidates,
    is_compared,
    next_trials,
    served_trials,
)
from rayprep.model.moe_space import KernelConfig, accumulators, specialisation
from rayprep.model.server_failure import NO_SPACE
from rayprep.model.spec import MoeStrategy
from rayprep.stages.child_lines import Emit, StepLine
from rayprep.stages.moe_log import MeasurementLog
from rayprep.stages.moe_tune_protocol import (
    BenchFacts,
    Counts,
    KernelJob,
    Recorded,
    TunedLine,
    TuneRequest,
)

_SAID_EACH_S = 1.0
_SOON = 128
"""Kernels of more sums in each thread than that take seconds to compile, and are hardly ever chosen."""
_ENOUGH_TO_TELL = 8
"""So many kernels of which none can be compiled are not the configs' fault."""


class Untunable(Exception):
    """No kernel can be compiled here, or nothing be measured for a number of tokens, SGLang's own config included."""


class Bench(Protocol):
    """What compiles and measures."""

    def open(self) -> BenchFacts: ...
    def stock(self, tokens: int) -> Stock: ...
    def shipped_sizes(self) -> Sequence[int]:
        """Of which SGLang's own files say something."""
        ...

    def record(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Recorded]]: ...
    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        """Each with why it could not be compiled, or None."""
        ...

    def measure(self, trials: Sequence[Trial]) -> Iterator[Measurement]: ...


class Tuner:
    """One tuning from start to end."""

    def __init__(self, request: TuneRequest, bench: Bench, log: MeasurementLog, emit: Emit) -> None:
        self.request, self.bench, self.log, self.emit = request, bench, log, emit
        self._candidates = {size: self._first(size) for size in request.sizes}
        self._reused = len(log.done)
        self._ran = any(each.us for each in log.done.values())
        """An earlier run has shown that kernels can be compiled here."""
        self._compiled: set[KernelJob] = set()
        self._broken: dict[KernelJob, str] = {}
        self._jobs: dict[object, tuple[KernelJob, ...]] = {}
        """Of each kind of trial. What this process has once recorded, and then run, it would not record again."""
        self._said = 0.0
        self._setup_s = self._compile_s = self._measure_s = 0.0

    def _first(self, size: int) -> Sequence[KernelConfig]:
        return self.request.space or first_candidates(self.request.strategy, self.request.shape, size)

    def go(self) -> TunedLine:
        """Raises OSError where the log cannot be written, and what the workers raise."""
        started = time.monotonic()
        self.emit(StepLine(hint="importing SGLang and making weights"))
        facts = self.bench.open()
        self._setup_s = time.monotonic() - started
        while trials := self._next():
            self._try(trials)
        return self._told(facts)

    def _next(self) -> tuple[Trial, ...]:
        explore = self.request.strategy is MoeStrategy.AUTO and not self.request.space
        return tuple(
            trial
            for size, candidates in self._candidates.items()
            for trial in next_trials(candidates, self.request.shape, size, self.log.done, explore=explore)
        )

    def _try(self, trials: Sequence[Trial]) -> None:
        """Compiles for all of them at once, and measures: those that are soon compiled while the others still are."""
        started = time.monotonic()
        self._record(trials)
        self._compile_s += time.monotonic() - started
        compiling = self._compiling(trials)
        for late in (False, True):
            part = [trial for trial in trials if (accumulators(trial.config) > _SOON) is late]
            self._measure(self._ready(part, compiling))

    def _compiling(self, trials: Sequence[Trial]) -> Iterator[KernelJob]:
        """Compiles what they need, each way of specialising a config once. It goes on while nobody asks for more."""
        # The longest first: begun last, it would be waited for alone.
        heaviest = sorted(trials, key=lambda trial: -accumulators(trial.config))
        needed = dict.fromkeys(job for trial in heaviest for job in self._jobs[self._kind(trial)])
        fresh = tuple(job for job in needed if job not in self._compiled)
        for n, (job, error) in enumerate(self.bench.compile(fresh), 1):
            if error is not None and re.search(NO_SPACE, error):
                raise Untunable(error)  # a full disk is not the config's fault
            self._compiled.add(job)
            if error is not None:
                self._broken[job] = error
            self._say("compiling kernels", n, len(fresh))
            yield job

    def _ready(self, trials: Sequence[Trial], compiling: Iterator[KernelJob]) -> tuple[Trial, ...]:
        """Waits until their kernels are compiled. Returns the trials that can run."""
        started = time.monotonic()
        missing = {job for trial in trials for job in self._jobs[self._kind(trial)]} - self._compiled
        while missing:
            missing.discard(next(compiling))
        if len(self._broken) == len(self._compiled) >= _ENOUGH_TO_TELL and not self._ran:
            raise Untunable(f"no kernel can be compiled: {next(iter(self._broken.values()))}")
        ready = []
        for trial in trials:
            why = next((self._broken[job] for job in self._jobs[self._kind(trial)] if job in self._broken), None)
            if why is None:
                ready.append(trial)
            else:
                self.log.append(Measurement(trial=trial, error=why))
        self._compile_s += time.monotonic() - started
        return tuple(ready)

    def _record(self, trials: Sequence[Trial]) -> None:
        """Lists the kernels of each kind. What cannot even be called says so once more when it is measured."""
        kinds: dict[object, Trial] = {}
        for trial in trials:
            if (kind := self._kind(trial)) not in self._jobs:
                kinds.setdefault(kind, trial)  # the smallest of its kind, which is the soonest done
        for n, (trial, recorded) in enumerate(self.bench.record(tuple(kinds.values())), 1):
            self._jobs[self._kind(trial)] = recorded.jobs
            self._say("listing kernels", n, len(kinds))

    def _kind(self, trial: Trial) -> object:
        """Trials of one kind run the same kernels."""
        if trial.config is None:
            return trial.tokens
        return trial.config, specialisation(self.request.shape, trial.tokens, trial.config.BLOCK_SIZE_M)

    def _measure(self, trials: Sequence[Trial]) -> None:
        started = time.monotonic()
        # By size: the inputs of a size are made once.
        ordered = sorted(trials, key=lambda trial: trial.tokens)
        for n, measured in enumerate(self.bench.measure(ordered), 1):
            self.log.append(measured)
            self._say(f"measuring for {measured.trial.tokens} tokens", n, len(ordered))
        self._measure_s += time.monotonic() - started

    def _say(self, hint: str, n: int, m: int) -> None:
        """Not each of thousands."""
        now = time.monotonic()
        if n == m or now - self._said >= _SAID_EACH_S:
            self._said = now
            self.emit(StepLine(hint=hint, n=n, m=m))

    def _told(self, facts: BenchFacts) -> TunedLine:
        # Of other sizes an earlier run may have been stopped in the middle of their search.
        earlier = {trial.tokens for trial in self.log.done if is_compared(trial.tokens, self.log.done)}
        known = sorted(earlier | set(self.request.sizes))
        choices = self._choices(known)
        sizes = sorted({*known, *self.request.all_sizes, *self.bench.shipped_sizes()})
        stock = {size: self.bench.stock(size) for size in sizes}
        files = config_files(sizes, choices, stock)
        served = self._serve(files.up) if self.request.campaign else 0
        counts = Counts(
            gpus=self.request.gpus,
            measured=len(self.log.done) - self._reused,
            reused=self._reused,
            failed=sum(each.us is None for each in self.log.done.values()),
            compiled=len(self._compiled),
            served=served,
            unreadable=self.log.unreadable,
            setup_s=round(self._setup_s, 3),
            compile_s=round(self._compile_s, 3),
            measure_s=round(self._measure_s, 3),
        )
        return TunedLine(
            **facts._asdict(),
            files=files,
            choices=tuple(each for each in choices if each.tokens in self.request.sizes),
            counts=counts,
        )

    def _serve(self, entries: Mapping[int, KernelConfig]) -> int:
        """Compiles into the servers' cache what they will run, or each would do it one after another as it starts.

        What cannot be compiled is left to the server. Returns how many could.
        """
        trials = served_trials(entries, self.request.shape)
        self._record(trials)
        jobs = dict.fromkeys(
            job._replace(cache=self.request.campaign) for trial in trials for job in self._jobs[self._kind(trial)]
        )
        made = 0
        for n, (_, error) in enumerate(self.bench.compile(tuple(jobs)), 1):
            made += error is None
            self._say("compiling what servers will run", n, len(jobs))
        return made

    def _choices(self, sizes: Iterable[int]) -> tuple[Choice, ...]:
        found = {size: choose(size, self.log.done) for size in sizes}
        if dead := [size for size in self.request.sizes if found[size] is None]:
            errors = (each.error for each in self.log.done.values() if each.trial.tokens == dead[0])
            raise Untunable(f"nothing runs for {dead[0]} tokens: {next((e for e in errors if e), 'no answer')}")
        return tuple(each for each in found.values() if each)
