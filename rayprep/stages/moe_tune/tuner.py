"""The tuner's loop: asks what is to be measured next, has it compiled ahead and measured, and keeps each result."""

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rayprep.model.spec import MoeStrategy
from rayprep.model.tuning import RefusedEntry, TuningCounts
from rayprep.sglang.failure_signs import NO_SPACE
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import default_batch_sizes
from rayprep.stages.child.lines import Emit, StepLine
from rayprep.stages.moe_tune.config_entries import ConfigFiles, Launch, Stock, config_files, launches, without
from rayprep.stages.moe_tune.measurement_log import MeasurementLog
from rayprep.stages.moe_tune.protocol import Bench, BenchFacts, Call, KernelJob, TunedLine, TuneRequest
from rayprep.stages.moe_tune.search import (
    Choice,
    choices,
    finished,
    first_candidates,
    is_final,
    next_trials,
    on_one_gpu,
    with_own,
)
from rayprep.stages.moe_tune.space import accumulators, specialisation
from rayprep.stages.moe_tune.trial import Measurement, Trial, may_pass

_SAID_EACH_S = 1.0
_SOON = 128
"""Kernels of more sums in each thread than that take seconds to compile, and are hardly ever chosen."""
_ENOUGH_TO_TELL = 8
"""So many kernels of which none can be compiled are not the configs' fault."""


class Untunable(Exception):
    """No kernel can be compiled here, or nothing be measured for a number of tokens, SGLang's own config included."""


class Tuner:
    """One tuning from start to end."""

    def __init__(self, request: TuneRequest, bench: Bench, log: MeasurementLog, emit: Emit) -> None:
        self.request, self.bench, self.log, self.emit = request, bench, log, emit
        self._run = secrets.token_hex(4)
        log.retry(request.sizes)
        self._candidates = {size: self._first(size) for size in request.sizes if not self._is_known(size)}
        self._ran = any(each.us for each in log.done.values())
        """An earlier run has shown that kernels can be compiled here."""
        self._compiled: set[KernelJob] = set()
        self._broken: dict[KernelJob, str] = {}
        self._jobs: dict[object, tuple[KernelJob, ...]] = {}
        """Of each kind of call."""
        self._said = 0.0
        self._setup_s = self._compile_s = self._measure_s = 0.0

    def _is_known(self, size: int) -> bool:
        """Whether an earlier run has done as much for this size. Fewer candidates would find less than that has."""
        return not self.request.space and self.request.strategy in finished(self.request.shape, size, self.log.done)

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
            part = [trial for trial in trials if _is_late(trial) is late]
            self._measure(self._ready(part, compiling))

    def _compiling(self, calls: Sequence[Call]) -> Iterator[KernelJob]:
        """Compiles what they need, each way of specialising a config once. It goes on while nobody asks for more."""
        # The longest first: begun last, it would be waited for alone.
        heaviest = sorted(calls, key=lambda call: -accumulators(_config(call)))
        needed = dict.fromkeys(job for call in heaviest for job in self._jobs[self._kind(call)])
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
            why = self._uncompilable(trial)
            if why is None:
                ready.append(trial)
            else:
                self._keep(Measurement(trial=trial, error=why))
        self._compile_s += time.monotonic() - started
        return tuple(ready)

    def _uncompilable(self, call: Call) -> str | None:
        """Why a kernel of the call cannot be compiled, or None."""
        return next((self._broken[job] for job in self._jobs[self._kind(call)] if job in self._broken), None)

    def _record(self, calls: Sequence[Call]) -> None:
        """Lists the kernels of each kind. What cannot even be called says so once more when it is made."""
        kinds: dict[object, Call] = {}
        for call in calls:
            if (kind := self._kind(call)) not in self._jobs:
                kinds.setdefault(kind, call)  # the smallest of its kind, which is the soonest done
        for n, (call, recorded) in enumerate(self.bench.record(tuple(kinds.values())), 1):
            self._jobs[self._kind(call)] = recorded.jobs
            self._say("listing kernels", n, len(kinds))

    def _kind(self, call: Call) -> object:
        """Calls of one kind run the same kernels."""
        config = _config(call)
        if config is None:
            return call.tokens
        second = call.down if isinstance(call, Launch) and call.down != config else None
        shape, release = self.request.shape, self.request.release
        return config, second, specialisation(shape, call.tokens, config.BLOCK_SIZE_M, release)

    def _launches(self, files: ConfigFiles) -> dict[int, tuple[Launch, ...]]:
        return launches(files, self.request.shape, self.request.release)

    def _measure(self, trials: Sequence[Trial]) -> None:
        started = time.monotonic()
        for n, measured in enumerate(self.bench.measure(on_one_gpu(trials, self.log.done)), 1):
            self._keep(measured)
            self._say(f"measuring for {measured.trial.tokens} tokens", n, len(trials))
        self._measure_s += time.monotonic() - started

    def _keep(self, measured: Measurement) -> None:
        self.log.append(measured.model_copy(update={"run": self._run}))

    def _say(self, hint: str, n: int, m: int) -> None:
        """Not each of thousands."""
        now = time.monotonic()
        if n == m or now - self._said >= _SAID_EACH_S:
            self._said = now
            self.emit(StepLine(hint=hint, n=n, m=m))

    def _told(self, facts: BenchFacts) -> TunedLine:
        # The file is the model's, whatever flags and sizes a run asks for: it says what all of them have come to.
        chosen = self._choices()
        tuned = {choice.tokens for choice in chosen}
        sizes = {*tuned, *default_batch_sizes(()), *self.bench.shipped_sizes()}
        given = self.request.given
        stock = {size: self.bench.stock(size) for size in sorted(sizes | (given.up.keys() if given else set()))}
        if given and any(own.down for own in stock.values()):
            given = given.model_copy(update={"down": given.up})  # SGLang's own twin would overrule it
        wanted = given or (config_files(sizes, chosen, stock) if any(choice.config for choice in chosen) else None)
        files, refused = self._tried(wanted, stock)
        served = self._compile_ahead(files or config_files(sizes, (), stock)) if self.request.campaign else 0
        chosen = with_own(chosen, {entry.batch_size for entry in refused})
        return TunedLine(
            **facts._asdict(),
            files=files,
            refused=refused,
            choices=chosen,
            counts=self._counts(served),
            warnings=tuple(self._warnings(chosen)),
        )

    def _counts(self, served: int) -> TuningCounts:
        measured = sum(each.run == self._run for each in self.log.done.values())
        return TuningCounts(
            gpus=len(self.request.gpus) - len(self.bench.unused),
            measured=measured,
            reused=len(self.log.done) - measured,
            failed=sum(each.us is None for each in self.log.done.values()),
            compiled=len(self._compiled),
            served=served,
            setup_s=round(self._setup_s, 3),
            compile_s=round(self._compile_s, 3),
            measure_s=round(self._measure_s, 3),
        )

    def _warnings(self, chosen: Iterable[Choice]) -> Iterator[str]:
        if self.log.unreadable:
            yield f"{self.log.unreadable} lines of the tuner's log cannot be read, and were left out"
        for gpu, error in self.bench.unused.items():
            yield f"GPU {gpu} took no part in the tuning: {error}"
        if passed := [each.error for each in self.log.done.values() if each.may_pass and each.run == self._run]:
            yield f"{len(passed)} measurements failed for a reason that may pass, such as {passed[0]}"
        for each in chosen:
            if each.config and each.stock_error:
                what = f"SGLang's own config does not run for {each.tokens} tokens, and what was tuned stands alone"
                yield f"{what}: {each.stock_error}"

    def _tried(
        self, files: ConfigFiles | None, stock: Mapping[int, Stock]
    ) -> tuple[ConfigFiles | None, tuple[RefusedEntry, ...]]:
        """Makes every call that a server makes with the files. What fails gives way to SGLang's own values."""
        whole = files
        refused: list[RefusedEntry] = []
        while whole is not None and (failing := self._failing(whole)):
            refused += [_refused(size, error, whole, stock[size]) for size, error in failing.items()]
            whole = without(whole, failing, stock)
        dropped = {entry.batch_size for entry in refused if not entry.own_runs}
        return whole, tuple(entry.model_copy(update={"own_runs": entry.batch_size not in dropped}) for entry in refused)

    def _failing(self, files: ConfigFiles) -> dict[int, str]:
        """The entries with which a call fails, each with the first error.

        Raises Untunable where it failed of what says nothing of the entry.
        """
        calls = [(size, launch) for size, made in self._launches(files).items() for launch in made]
        made = tuple(dict.fromkeys(launch for _, launch in calls))
        self._record(made)
        for _ in self._compiling(made):
            pass
        errors = {launch: error for launch in made if (error := self._uncompilable(launch))}
        sound = tuple(launch for launch in made if launch not in errors)
        for n, (launch, error) in enumerate(self.bench.launch(sound), 1):
            self._say("launching every entry", n, len(sound))
            if error is not None:
                errors[launch] = error
        for launch, error in errors.items():
            if may_pass(error):
                raise Untunable(f"the config for {launch.tokens} tokens could not be tried: {error}")
        return {size: f"{errors[call]} (with {call.tokens} tokens)" for size, call in reversed(calls) if call in errors}

    def _compile_ahead(self, files: ConfigFiles) -> int:
        """Compiles into the servers' cache what they will run, or each would do it one after another as it starts.

        What cannot be compiled is left to the server. Returns how many could.
        """
        calls = [launch for made in self._launches(files).values() for launch in made]
        self._record(calls)
        jobs = dict.fromkeys(
            job._replace(cache=self.request.campaign) for call in calls for job in self._jobs[self._kind(call)]
        )
        made = 0
        for n, (_, error) in enumerate(self.bench.compile(tuple(jobs)), 1):
            made += error is None
            self._say("compiling what servers will run", n, len(jobs))
        return made

    def _choices(self) -> tuple[Choice, ...]:
        found = choices(self.request.sizes, self.request.shape, self.log.done)
        for size in self.request.sizes:
            choice = next((each for each in found if each.tokens == size), None)
            if choice is None:
                errors = (each.error for each in self.log.done.values() if each.trial.tokens == size)
                raise Untunable(f"nothing runs for {size} tokens: {next((e for e in errors if e), 'no answer')}")
            if may_pass(choice.stock_error):  # measured the next time, it may be the fastest
                raise Untunable(f"SGLang's own config was not measured for {size} tokens: {choice.stock_error}")
        return found


def _config(call: Call) -> KernelConfig | None:
    return call.up if isinstance(call, Launch) else call.config


def _refused(size: int, error: str, files: ConfigFiles, own: Stock) -> RefusedEntry:
    down = files.down[size] if files.down else None
    own_runs = (files.up[size], down or own.second) != (own.config, own.second)
    config = files.up[size] if files.up[size] != own.config else down or own.config
    return RefusedEntry(batch_size=size, config=config.entry(), error=error, own_runs=own_runs)


def _is_late(trial: Trial) -> bool:
    """What decides is measured at one go."""
    return is_final(trial) or accumulators(trial.config) > _SOON
