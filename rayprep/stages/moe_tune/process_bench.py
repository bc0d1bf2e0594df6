"""What the tuner measures and compiles with: processes that stay, one for each GPU and as many as there are CPUs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from multiprocessing import get_context
from types import MappingProxyType
from typing import TypeVar

from rayprep.stages.moe_tune.compile import CompileSetup
from rayprep.stages.moe_tune.config_entries import Launch, Stock
from rayprep.stages.moe_tune.protocol import BenchFacts, Call, KernelJob, RecordedKernels, TuneRequest
from rayprep.stages.moe_tune.search import Group
from rayprep.stages.moe_tune.trial import Measurement, Trial
from rayprep.stages.moe_tune.workers import Worker, WorkerFailed, WorkerLost, ask_all

T = TypeVar("T")
Question = tuple[str, object]
"""The name of one of the methods of the bench in the process, and its argument."""
Questions = Sequence[Question]
"""For one GPU, one after another."""
_SGLANG_KERNELS = "sglang.srt.layers.moe.fused_moe_triton"


class BenchSetup:
    """Makes a process the bench of one GPU."""

    def __init__(self, request: TuneRequest, gpu: int) -> None:
        self.request, self.gpu = request, gpu

    def __call__(self) -> Callable[[tuple[str, object]], object]:
        from rayprep.stages.moe_tune.bench import MoeBench, answers

        answer, uuid = answers(MoeBench(self.request.shape, self.request.seed, self.gpu)), self.uuid

        def signed(question: tuple[str, object]) -> object:
            found = answer(question)
            return found.model_copy(update={"gpu": uuid}) if isinstance(found, Measurement) else found

        return signed

    @property
    def uuid(self) -> str:
        return self.request.uuids[self.gpu] if self.request.uuids else ""


class ProcessBench:
    """The bench in processes of its own: one for each GPU, and as many compilers as there are CPUs.

    The compilers are forked from one process that has imported SGLang and has never used a GPU.
    """

    def __init__(self, request: TuneRequest) -> None:
        self._request = request
        self._gpus: list[Worker[tuple[str, object], object]] = []
        self._compilers: list[Worker[KernelJob, None]] = []
        self._index: dict[str, int] = {}
        self.unused: dict[int, str] = {}

    def open(self) -> BenchFacts:
        """Starts them all, which takes as long as SGLang's import.

        Raises:
            WorkerFailed: no GPU can be used.
            WorkerKilled: somebody ended a process.
        """
        request = self._request
        spawn, fork = get_context("spawn"), get_context("forkserver")
        fork.set_forkserver_preload(["rayprep.stages.moe_tune.compile", _SGLANG_KERNELS])
        setups = [BenchSetup(request, gpu) for gpu in range(len(request.gpus))]
        self._gpus = [Worker(spawn, setup) for setup in setups]
        for _ in range(request.compilers):
            self._compilers.append(Worker(fork, CompileSetup(request.capability)))
        ready = [self._is_ready(gpu, worker) for gpu, worker in zip(request.gpus, self._gpus, strict=True)]
        self._gpus, setups = list(compress(self._gpus, ready)), list(compress(setups, ready))
        self._index = {setup.uuid: index for index, setup in enumerate(setups)}
        if not self._gpus:
            gpu, error = next(iter(self.unused.items()))
            raise WorkerFailed(f"GPU {gpu}: {error}")
        return self._ask("facts", None, BenchFacts)

    def _is_ready(self, gpu: int, worker: Worker[tuple[str, object], object]) -> bool:
        """Somebody else may hold all of its memory; the others do without it."""
        try:
            worker.wait_until_ready()
        except (WorkerFailed, WorkerLost) as error:
            self.unused[gpu] = str(error)
            worker.end()
        return gpu not in self.unused

    def stock(self, tokens: int) -> Stock:
        return self._ask("stock", tokens, Stock)

    def shipped_sizes(self) -> Sequence[int]:
        return self._ask("shipped_sizes", None, tuple)

    def _ask(self, what: str, argument: object, kind: type[T]) -> T:
        answer = self._gpus[0].call((what, argument), self._request.deadline_s)
        assert isinstance(answer, kind)
        return answer

    def record(self, calls: Sequence[Call]) -> Iterator[tuple[Call, RecordedKernels]]:
        for (_, call), answer, error in self._ask_gpus([[("record", call)] for call in calls]):
            assert isinstance(call, Trial | Launch)
            yield call, answer if isinstance(answer, RecordedKernels) else RecordedKernels((), error)

    def launch(self, launches: Sequence[Launch]) -> Iterator[tuple[Launch, str | None]]:
        for (_, launch), answer, error in self._ask_gpus([[("launch", launch)] for launch in launches]):
            assert isinstance(launch, Launch)
            yield launch, error or (str(answer) if answer else None)

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        shared: list[list[Question]] = []
        own: dict[int, list[list[Question]]] = {}
        for trials, gpu in groups:
            where = own.setdefault(self._index[gpu], []) if gpu in self._index else shared
            where.append([("measure", trial) for trial in trials])
        for (_, trial), answer, error in self._ask_gpus(shared, own):
            assert isinstance(trial, Trial)
            yield answer if isinstance(answer, Measurement) else Measurement(trial=trial, error=error)

    def _ask_gpus(
        self,
        shared: Sequence[Sequence[Question]],
        own: Mapping[int, Sequence[Sequence[Question]]] = MappingProxyType({}),
    ) -> Iterator[tuple[Question, object, str | None]]:
        """Questions by who answers them: whoever is free, and in `own` one GPU, by its index."""
        return ask_all(self._gpus, shared, self._request.deadline_s, own)

    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        for job, _, error in ask_all(self._compilers, [(job,) for job in jobs], self._request.deadline_s):
            yield job, error

    def close(self) -> None:
        for gpu in self._gpus:
            gpu.end()
        for compiler in self._compilers:
            compiler.end()
