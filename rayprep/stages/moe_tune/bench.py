"""In the tuner's measuring processes, one for each GPU: SGLang's fused MoE layer on made-up weights, timed.

As a server runs it, and as the official tuner does: the whole layer, from the hidden states to their sum. Weights are
made once. Several calls are captured in one CUDA graph, each with an input and a routing of its own, so that no call
finds the former one's weights in the L2 cache, as no layer of a model does. The inputs are put back before each replay,
since the layer writes its result over them.

Source of what is called: sglang 0.5.16, `srt/layers/moe/moe_runner/triton_utils`, and the official tuner in
benchmark/kernels/fused_moe_triton.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sglang.srt.layers.moe.fused_moe_triton  # noqa: F401 - first: the modules below import one another
import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config as sglang_configs
import torch
import triton
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.triton_utils import override_config
from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_moe
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import FP8, MoeShape
from rayprep.stages.child.failures import failure_line
from rayprep.stages.moe_tune.config_entries import Launch, Stock
from rayprep.stages.moe_tune.layer import Inputs, MadeUpLayer
from rayprep.stages.moe_tune.protocol import BenchFacts, Call, KernelJob, Recorded
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
        set_global_server_args_for_scheduler(ServerArgs(model_path="dummy"))
        # As the server's layer has it: all experts are on this rank, so none is filtered.
        self._runner = MoeRunnerConfig(num_experts=shape.experts, num_local_experts=shape.experts, inplace=True)
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

    def facts(self) -> BenchFacts:
        """The names by SGLang's own function, and where its files are."""
        shape = self.shape
        block = list(shape.block) if shape.block else None
        name, down = (
            sglang_configs.get_config_file_name(
                shape.experts, shape.width, shape.dtype, block, shape.per_channel, down_moe=down
            )
            for down in (False, True)
        )
        home = Path(os.path.realpath(sglang_configs.__file__)).parent
        version = triton.__version__
        return BenchFacts(name, down, f"triton_{version.replace('.', '_')}", version, str(home / "configs"))

    def stock(self, tokens: int) -> Stock:
        """What SGLang would run: with its own files, since none of ours is in sight (SGLANG_MOE_CONFIG_DIR)."""
        shape = self.shape
        block = list(shape.block) if shape.block else None
        config, (down, _) = sglang_configs.try_get_optimal_moe_config(
            (shape.experts, 2 * shape.width, shape.hidden),
            (shape.experts, shape.hidden, shape.width),
            shape.top_k,
            shape.dtype,
            tokens,
            block_shape=block,
            per_channel_quant=shape.per_channel,
            return_down_config=True,
        )
        return Stock(
            config=KernelConfig.model_validate(config),
            down=KernelConfig.model_validate(down) if down and down != config else None,
        )

    def shipped_sizes(self) -> tuple[int, ...]:
        """For how many tokens SGLang's own files say something."""
        shape = self.shape
        rows, depth = shape.block or (0, 0)
        entries = (
            sglang_configs.get_moe_configs(
                shape.experts, shape.width, shape.dtype, rows, depth, shape.per_channel, down_moe=down
            )
            for down in (False, True)
        )
        return tuple(sorted({size for found in entries for size in found or ()}))

    def record(self, call: Call) -> Recorded:
        """The kernels that the call needs. They are not compiled, and nothing of them runs."""
        jobs: list[KernelJob] = []
        self._forget_kernels()
        with _recording(jobs):
            if isinstance(call, Launch):
                self._serve(call)
            else:
                self._call(call, self._inputs_for(call.tokens), 0)
        self._seen |= {(job.module, job.name) for job in jobs}
        return Recorded(tuple(jobs))

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
        with _overridden(trial.config):
            self._run(inputs, number)

    def _serve(self, launch: Launch) -> None:
        """One call in which SGLang chooses the configs itself, of the launch's entries."""
        with _reading(launch):
            self._run(self._layer.inputs(launch.tokens, calls=1), 0)

    def _run(self, inputs: Inputs, number: int) -> None:
        weights = self._weight_sets[number % len(self._weight_sets)]
        fused_moe(
            inputs.states[number],
            weights.gate_up,
            weights.down,
            inputs.routing[number],
            moe_runner_config=self._runner,
            use_fp8_w8a8=self.shape.dtype == FP8,
            per_channel_quant=self.shape.per_channel,
            w1_scale=weights.gate_up_scale,
            w2_scale=weights.down_scale,
            block_shape=list(self.shape.block) if self.shape.block else None,
        )

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


@contextmanager
def _overridden(config: KernelConfig | None) -> Iterator[None]:
    """Has both products run with a config; with None, with what SGLang chooses.

    Nothing may be raised out of SGLang's own `override_config`: it would leave the config in place, and `stock` take
    that for SGLang's own (`triton_utils/__init__.py` of sglang 0.5.16: its `yield` is in no `try`).
    """
    failure: Exception | None = None
    with override_config(config.entry() if config else None):
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again behind it
            failure = error
    if failure is not None:
        raise failure


@contextmanager
def _reading(launch: Launch) -> Iterator[None]:
    """Has SGLang find these entries where it reads its config files, and nothing else."""

    def entries(*_: object, down_moe: bool = False, **__: object) -> dict[int, dict[str, int | bool]]:
        # Where there is no file for the second product, SGLang takes the first one's entry.
        config = launch.down if down_moe and launch.down else launch.up
        return {launch.tokens: config.entry()}

    before = sglang_configs.get_moe_configs
    sglang_configs.get_moe_configs = entries
    try:
        yield
    finally:
        sglang_configs.get_moe_configs = before


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
