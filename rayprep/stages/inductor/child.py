"""The child process of the `inductor` stage: compiles decode steps with TorchInductor and compares with eager.

    python -m rayprep.stages.inductor.child REQUEST.json

Answers in lines of JSON on standard output (`child.lines`); everything else, compilers included, goes to
standard error. It reads its environment and never writes it: the cache's folder is the parent's to choose.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rayprep.stages.child.failures import failure
from rayprep.stages.child.lines import Emit, StepLine, UnitFailed, answer
from rayprep.stages.inductor.protocol import (
    DecodeRequest,
    GraphDone,
    GraphsLine,
    Mismatch,
    rank_shape,
    unit_name,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rayprep.stages.inductor.decode_step import StepInput

TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-4}
"""How far compiled may be from eager, as norm of the difference over norm. Measured: a quarter of it or less."""


class OpenedFiles:
    """An audit hook (PEP 578) that notes which files below `root` were opened, loaded, or given to a program.

    What C++ opens by itself stays unseen; Inductor reads its cache from Python, and loads libraries with
    `import`, with ctypes, or (to try an instruction set) in a Python of its own whose command line names them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[Path] = set()
        in_command = re.compile(re.escape(str(root)) + r"/[^\s\"']+")
        self._names: dict[str, Callable[[tuple[object, ...]], Iterable[object]]] = {
            "open": lambda args: args[:1],
            "import": lambda args: args[1:2],
            "ctypes.dlopen": lambda args: args[:1],
            "subprocess.Popen": lambda args: in_command.findall(str(args[1])),
        }

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event in self._names:
            names = (name for name in self._names[event](args) if isinstance(name, str | bytes | os.PathLike))
            self._seen.update(Path(os.fsdecode(name)).absolute() for name in names)

    def used(self) -> tuple[str, ...]:
        """The files that still exist, with their twins: Inductor writes a source anew if it misses that alone."""
        below = [path for path in tuple(self._seen) if self._root in path.parents]
        seen = [path for path in below if path.suffix not in (".lock", ".tmp")]
        twins = (twin for path in seen for twin in path.parent.glob(f"{path.name.split('.')[0]}.*"))
        files = {path for path in (*seen, *twins) if path.is_file() and not path.is_symlink()}
        return tuple(sorted(path.relative_to(self._root).as_posix() for path in files))


class SwallowedErrors(logging.Handler):
    """Collects the OSErrors that torch only logs when it cannot write a cache entry."""

    SOURCES = ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[OSError] = []
        for name in self.SOURCES:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else None
        said = record.args if isinstance(record.args, tuple) else ()
        self.errors += [error for error in (raised, *said) if isinstance(error, OSError)]


def main(arguments: list[str]) -> int:
    """Runs one request. Returns the exit code."""
    return answer(arguments, DecodeRequest, _run, failure)


def _run(request: DecodeRequest, emit: Emit) -> GraphsLine:
    """Compiles and compares each batch size."""
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") != request.cache_dir:
        raise ValueError("TORCHINDUCTOR_CACHE_DIR is not the request's cache_dir")
    opened = OpenedFiles(Path(request.cache_dir))
    sys.addaudithook(opened)
    compiling, done = Graphs(request), list[GraphDone]()
    for batch_size in request.batch_sizes:
        unit = unit_name(request.architecture, request.tp, batch_size, request.max_seq_len, request.device)
        try:
            graph = compiling.compile(batch_size)
        except Exception as error:
            raise UnitFailed(unit) from error
        done.append(GraphDone(unit=unit, **graph._asdict()))
        how = "found" if graph.cache_hit else "compiled"
        emit(StepLine(hint=f"{how} {unit} in {graph.seconds:.1f} s", n=len(done), m=len(request.batch_sizes)))
    return GraphsLine(graphs=tuple(done), used=opened.used())


class Graph(NamedTuple):
    """One compiled graph, as a `GraphDone` tells it."""

    seconds: float
    max_abs_diff: float
    cache_hit: bool


class Graphs:
    """Compiles decode steps of one model, all over one set of weights."""

    def __init__(self, request: DecodeRequest) -> None:
        from torch._inductor import config

        from rayprep.stages.inductor.decode_step import Random

        # Precompiled headers would lie outside the cache, in the system's temporary folder, and every fresh
        # process would run the preprocessor to find them. Without them a warm start runs no compiler.
        config.cpp_cache_precompile_headers = False
        # Else the number of threads is compiled in, and another CPU affinity or OMP_NUM_THREADS misses the cache.
        config.cpp.dynamic_threads = True
        self._request = request
        self._shape = rank_shape(request.architecture, request.tp)
        self._random = Random(self._shape, request.device, request.seed)
        self._weights = self._random.weights()
        self._tolerance = TOLERANCE[self._shape.dtype]
        self._swallowed = SwallowedErrors()

    def compile(self, batch_size: int) -> Graph:
        """One static graph.

        Raises:
            Mismatch: it computes something else than eager.
            OSError: in mode `build`, when its cache entry could not be written.
        """
        import torch
        from torch._dynamo.utils import compilation_time_metrics, counters

        from rayprep.stages.inductor.decode_step import StepInput, decode_step

        def step(given: StepInput) -> torch.Tensor:
            return decode_step(self._shape, self._weights, given)

        torch._dynamo.reset()
        counters.clear()
        compilation_time_metrics.clear()
        given = self._random.step_input(batch_size, self._request.max_seq_len)
        with torch.no_grad():
            expected = _results(step, given.copy())
            started = time.monotonic()
            actual = _results(torch.compile(step, dynamic=False, fullgraph=True), given)
            seconds = time.monotonic() - started
        if self._request.mode == "build" and self._swallowed.errors:
            raise self._swallowed.errors[0]
        hit = _found(counters) and "compile_file" not in compilation_time_metrics
        return Graph(round(seconds, 3), largest_difference(actual, expected, self._tolerance), hit)


def largest_difference(actual: Sequence["Tensor"], expected: Sequence["Tensor"], tolerance: float) -> float:
    """The largest absolute difference of any element.

    Raises:
        Mismatch: some tensor is off by more than `tolerance` of its norm, or holds a NaN.
    """
    largest = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        difference = (ours - theirs).float()
        distance = (difference.norm() / theirs.float().norm()).item()
        if not distance <= tolerance:  # so that NaN fails too
            raise Mismatch(f"compiled is off from eager by {distance:.2g} of its norm, {tolerance:.2g} allowed")
        largest = max(largest, difference.abs().max().item())
    return largest


def _results(step: Callable[["StepInput"], "Tensor"], given: "StepInput") -> list["Tensor"]:
    """A step's output [B, H], and what it wrote: each layer's new keys and values [B, K, D]."""
    import torch

    output = step(given)
    rows = torch.arange(len(given.positions), device=output.device)
    return [output, *(part[rows, :, given.positions] for cache in given.caches for part in cache)]


def _found(counters: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether torch's two caches had the graph; `bypass` is a graph that it refuses to cache.

    A hit of AOTAutogradCache also counts as one of FxGraphCache, which it leads to (torch 2.11 and 2.13). Neither
    says whether the libraries are there: an entry from a torch installed elsewhere hits, and compiles them again.
    """
    outer, inner = counters["aot_autograd"], counters["inductor"]
    missed = (outer[f"autograd_cache_{how}"] + inner[f"fxgraph_cache_{how}"] for how in ("miss", "bypass"))
    return inner["fxgraph_cache_hit"] > 0 and not any(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
