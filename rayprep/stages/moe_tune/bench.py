"""In the tuner's measuring processes, one for each GPU: SGLang's fused MoE layer on made-up weights, timed.

As a server runs it, and as the official tuner does: the whole layer, from the hidden states to their sum. Weights are
made once. Several calls are captured in one CUDA graph, each with an input and a routing of its own, so that no call
finds the former one's weights in the L2 cache, as no layer of a model does. The inputs are put back before each replay,
since the layer writes its result over them.

Source of how it is measured: the official tuner in benchmark/kernels/fused_moe_triton, sglang 0.5.16.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import triton

from rayprep.sglang.inside.fused_moe import FusedMoe, overridden, own_config_folder, reading
from rayprep.sglang.inside.moe_layer import Inputs, MadeUpLayer
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.child.failures import failure_line
from rayprep.stages.moe_tune.config_entries import Launch, Stock
from rayprep.stages.moe_tune.protocol import BenchFacts, Call, KernelJob, RecordedKernels
from rayprep.stages.moe_tune.search import is_hopeless
from rayprep.stages.moe_tune.timing import graph_us
from rayprep.stages.moe_tune.trial import Measurement, Trial

_KERNELS = ("fused_moe_kernel",)
"""How the names of the kernels begin that a config changes."""
_CONTEXT_LOST = 70
_L2_TIMES = 4
"""So many times the L2 cache, at least, is what the copies of the weights have together."""
_MOST_COPIES = 16
_WARM_UP = Trial(tokens=64, config=None, replays=200)
"""Has SGLang's own modules built, and the GPU at its clock."""


class MoeBench:
    """One GPU. Its methods raise what torch, triton and sglang raise."""

    def __init__(self, shape: MoeShape, seed: int, gpu: int) -> None:
        torch.cuda.set_device(gpu)
        self.shape, self._layer = shape, MadeUpLayer(shape, seed, torch.device("cuda", gpu))
        self._moe = FusedMoe(shape)
        first = self._layer.weights()
        size = first.gate_up.nbytes + first.down.nbytes
        l2 = torch.cuda.get_device_properties(gpu).L2_cache_size
        copies = max(1, min(_MOST_COPIES, -(-_L2_TIMES * l2 // size)))
        self._weight_sets = [first, *(self._layer.weights() for _ in range(copies - 1))]
        self._inputs: Inputs | None = None
        self._seen: set[tuple[str, str]] = set()
        """The kernels' modules and names, as far as one was recorded."""
        self._best: dict[int, float] = {}
        """Microseconds, by the number of tokens."""
        self._measured(_WARM_UP)
        triton.knobs.compilation.listener = _tell_of_a_kernel_not_listed

    def facts(self) -> BenchFacts:
        """The names by SGLang's own function, and where its files are."""
        (name, down), version = self._moe.config_names(), triton.__version__
        return BenchFacts(name, down, f"triton_{version.replace('.', '_')}", version, own_config_folder())

    def stock(self, tokens: int) -> Stock:
        """What SGLang would run."""
        config, down = self._moe.own_configs(tokens)
        return Stock(config=config, down=down)

    def shipped_sizes(self) -> tuple[int, ...]:
        """For how many tokens SGLang's own files say something."""
        return self._moe.listed_sizes()

    def record(self, call: Call) -> RecordedKernels:
        """The kernels that the call needs. They are not compiled, and nothing of them runs."""
        jobs: list[KernelJob] = []
        self._forget_kernels()
        with _recording(jobs):
            if isinstance(call, Launch):
                self._serve(call)
            else:
                self._call(call, self._inputs_for(call.tokens), 0)
        self._seen |= {(job.module, job.name) for job in jobs}
        return RecordedKernels(tuple(jobs))

    def _forget_kernels(self) -> None:
        """Triton asks nothing of a kernel that this process has loaded. It is read again from the cache on disk."""
        for module, name in self._seen:
            for loaded, *_ in getattr(importlib.import_module(module), name).device_caches.values():
                loaded.clear()

    def launch(self, launch: Launch) -> str | None:
        """Makes the call. Returns why it does not run, or None."""
        try:
            self._serve(launch)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - an entry that does not fit is an answer
            _end_without_context(error)
            return failure_line(error)
        return None

    def measure(self, trial: Trial) -> Measurement:
        """Runs it. The measurement says why, where it cannot."""
        try:
            us, cut = self._measured(trial)
        except Exception as error:  # noqa: BLE001 - a config that does not fit is an answer
            _end_without_context(error)
            return Measurement(trial=trial, error=failure_line(error))
        self._best[trial.tokens] = min(us, self._best.get(trial.tokens, us))
        return Measurement(trial=trial, us=us, cut=cut)

    def _measured(self, trial: Trial) -> tuple[float, bool]:
        """Microseconds of one call, and whether the trial was cut short."""
        inputs = self._inputs_for(trial.tokens)
        calls = range(len(inputs.routing))
        for call in (0, min(1, calls[-1])):  # the second as torch.compile compiles again for what it took for constant
            self._call(trial, inputs, call)
        best = self._best.get(trial.tokens)
        if is_hopeless(us := self._timed(trial, inputs, calls[-1:], 1), best):
            return us, True
        return self._timed(trial, inputs, calls, trial.replays) / len(calls), False

    def _timed(self, trial: Trial, inputs: Inputs, calls: Sequence[int], replays: int) -> float:
        """Microseconds of all these calls."""

        def run() -> None:
            for call in calls:
                self._call(trial, inputs, call)

        return graph_us(run, lambda: inputs.states.copy_(inputs.fresh), replays)

    def _call(self, trial: Trial, inputs: Inputs, number: int) -> None:
        with overridden(trial.config):
            self._run(inputs, number)

    def _serve(self, launch: Launch) -> None:
        """One call in which SGLang chooses the configs itself, of the launch's entries."""
        with reading(launch.tokens, launch.up, launch.down):
            self._run(self._layer.inputs(launch.tokens, calls=1), 0)

    def _run(self, inputs: Inputs, number: int) -> None:
        weights = self._weight_sets[number % len(self._weight_sets)]
        self._moe.run(inputs.states[number], weights, inputs.routing[number])

    def _inputs_for(self, tokens: int) -> Inputs:
        """Made once for a size; the same for the same seed, whatever was measured before."""
        if self._inputs is None or self._inputs.fresh.shape[1] != tokens:
            self._inputs = None
            self._inputs = self._layer.inputs(tokens)
        return self._inputs


def _end_without_context(error: Exception) -> None:
    """Ends the process where the error took the whole CUDA context with it: another one has to go on."""
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 - whatever it says, nothing more can run here
        print(failure_line(error), file=sys.stderr, flush=True)
        os._exit(_CONTEXT_LOST)


def _tell_of_a_kernel_not_listed(*, src: object, cache_hit: bool, **_: object) -> None:
    """Name in the stage's log what this process compiles itself, one after another, as the compilers should have.

    Source: `compile` in triton/compiler/compiler.py (3.6 and 3.8).
    """
    name = str(getattr(src, "name", ""))
    if not cache_hit and name.startswith(_KERNELS):
        print(f"{name} was not listed, and is compiled before it is measured", file=sys.stderr, flush=True)


@contextmanager
def _recording(jobs: list[KernelJob]) -> Iterator[None]:
    """Triton asks before it compiles, and a yes means that it was taken care of: the call then launches nothing.

    Source: `JITFunction._do_compile` and `run` in triton/runtime/jit.py (3.6).
    """

    def ask(*, fn: object, compile: dict[str, object], **_: object) -> bool:
        name = str(getattr(fn, "name", ""))
        if not name.startswith(_KERNELS):
            return False
        jobs.append(KernelJob(str(getattr(fn, "module", "")), name, str(compile["specialization_data"])))
        return True

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = ask
    try:
        yield
    finally:
        triton.knobs.runtime.jit_cache_hook = before


Question = tuple[str, object]
"""The name of one of the bench's methods, and its argument."""


def answers(bench: MoeBench) -> Callable[[Question], object]:
    """Answers the questions of whoever has this process."""

    def answer(question: Question) -> object:
        name, argument = question
        if name == "facts":
            return bench.facts()
        if name == "stock":
            assert isinstance(argument, int)
            return bench.stock(argument)
        if name == "shipped_sizes":
            return bench.shipped_sizes()
        if name == "launch":
            assert isinstance(argument, Launch)
            return bench.launch(argument)
        assert isinstance(argument, Trial | Launch)
        if name == "record":
            return bench.record(argument)
        assert isinstance(argument, Trial)
        return bench.measure(argument)

    return answer
