"""The child process of the `deep_gemm` stage: lists the kernels of some matrix products, compiles and loads them.

    python -P -m rayprep.stages.deep_gemm.child REQUEST.json

In mode `nvcc`, DeepGEMM runs every product against a cache in the scratch folder and a stand-in compiler, which
lists the kernels; the real compiler makes them side by side; then the same products run against the real cache,
where a compiler that refuses everything proves that none is missing. It is one process, since importing torch takes
longer than the listing: DeepGEMM reads DG_JIT_CACHE_DIR once, so that names a link, which is turned in between.

Answers in lines of JSON on standard output (`child.lines`); everything else goes to standard error. It reads its
environment and never writes it.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rayprep.base.errors import ErrorType
from rayprep.base.text import printable
from rayprep.stages.child.failures import failure
from rayprep.stages.child.lines import Emit, FailLine, StepLine, answer
from rayprep.stages.deep_gemm.cache import Compilers, adopt, entries, recorded_arguments, whole_entry
from rayprep.stages.deep_gemm.compile_jobs import CompileJob, compile_error, run_jobs
from rayprep.stages.deep_gemm.listing_folder import ListingFolder
from rayprep.stages.deep_gemm.products import run_task
from rayprep.stages.deep_gemm.protocol import (
    GEMM_LINE,
    GemmRequest,
    KernelsLine,
    ShareFailed,
    Task,
    Unlisted,
    shares,
)

_COMPILE_FAILED = ("NVCC compilation failed", "command failed with exit code")
"""What DeepGEMM says of a compiler's failure: 0.1, 0.2."""


def main(argv: Sequence[str]) -> int:
    """Does what the request file asks. Returns the exit status: 0, or 1 after a `FailLine`."""
    return answer(argv, GemmRequest, _work, failure)


def _work(request: GemmRequest, emit: Emit) -> KernelsLine:
    return {"nvcc": _list_and_compile, "library": _share_out, "share": _run_share}[request.mode](request, emit)


def _list_and_compile(request: GemmRequest, emit: Emit) -> KernelsLine:
    cache, folder = Path(request.cache), ListingFolder(Path(request.scratch))
    if os.environ.get("DG_JIT_CACHE_DIR") != str(folder.view):
        raise ValueError("DG_JIT_CACHE_DIR is not the view in the request's scratch folder")
    with _set_aside(Path(request.scratch) / "listing.log"):
        _run_all(request.tasks, "listing kernels", emit, _Stubs(folder))
    listed = entries(folder.listing)
    missing = [entry for entry in listed if not whole_entry(cache / "cache" / entry.name)]
    _make(missing, request, emit)
    folder.turn_to(cache)
    _run_all(request.tasks, "checking kernels", emit, _nothing_is_forgiven)
    return KernelsLine(used=_names(listed), compiled=_names(missing))


@contextlib.contextmanager
def _set_aside(log: Path) -> Iterator[None]:
    """Keeps what is printed meanwhile out of the stage's log.

    DeepGEMM calls each stub that it cannot load a corrupted cache, once for every M. The errors that matter are raised.
    """
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("wb") as aside:
        for number in (1, 2):
            os.dup2(aside.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _run_all(tasks: Sequence[Task], hint: str, emit: Emit, judge: Callable[[RuntimeError], None]) -> None:
    for n, task in enumerate(tasks, 1):
        run_task(task, judge)
        emit(StepLine(hint=hint, n=n, m=len(tasks)))


class _Stubs:
    """Judges the errors of a listing: DeepGEMM fails to load each stub, and goes on from there at the next M."""

    def __init__(self, folder: ListingFolder) -> None:
        self._folder, self._seen = folder, False

    def __call__(self, error: RuntimeError) -> None:
        if (output := self._folder.failure()) is not None:
            raise compile_error("a layout kernel", output, 1) from error
        self._seen = self._seen or any(recorded_arguments(entry) for entry in entries(self._folder.listing))
        if not self._seen:
            raise error


def _nothing_is_forgiven(error: RuntimeError) -> None:
    if any(words in str(error) for words in _COMPILE_FAILED):
        raise Unlisted(f"DeepGEMM still asks for a kernel to be compiled: {error}") from error
    raise error


def _raise(error: RuntimeError) -> None:
    raise error


def _make(missing: Sequence[Path], request: GemmRequest, emit: Emit) -> None:
    """Brings the listed entries into the cache: compiles the recorded, copies what the real compiler made already."""
    cache, jobs = Path(request.cache), []
    compilers = Compilers(str(ListingFolder(Path(request.scratch)).compiler), request.nvcc)
    for entry in missing:
        arguments = recorded_arguments(entry)
        if arguments is None:
            adopt(entry, cache, compilers)
        else:
            jobs.append(CompileJob(entry, arguments))
    done = len(missing) - len(jobs)
    emit(StepLine(hint="compiling kernels", n=done, m=len(missing)))
    for n, compiled in enumerate(run_jobs(jobs, compilers, cache, request.parallel), done + 1):
        print(f"compiled {printable(compiled.name)} in {compiled.seconds:.1f} s", flush=True)
        emit(StepLine(hint="compiling kernels", n=n, m=len(missing)))


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in folders))


def _run_share(request: GemmRequest, emit: Emit) -> KernelsLine:
    """The library compiles into the real cache whatever it misses."""
    _run_all(request.tasks, "compiling", emit, _raise)
    return KernelsLine(used=(), compiled=())


def _share_out(request: GemmRequest, emit: Emit) -> KernelsLine:
    """Several processes build, then one more runs everything and must add nothing.

    Which of the entries that were there before belong to these products the library does not tell: all count as used.
    """
    cache = Path(request.cache)
    before = _whole(cache)
    portions = shares(request.tasks, request.parallel)
    with ThreadPoolExecutor(len(portions)) as pool:
        futures = [pool.submit(_share_process, request, each, f"share-{i}") for i, each in enumerate(portions)]
        for n, future in enumerate(as_completed(futures), 1):
            future.result()
            emit(StepLine(hint="compiling kernels by shares", n=n, m=len(portions)))
    built = _whole(cache)
    emit(StepLine(hint="checking kernels", n=0, m=1))
    _share_process(request, request.tasks, "check")
    if late := _whole(cache) - built:
        raise Unlisted(f"a second process still compiled {len(late)} kernels, first {min(late)}")
    return KernelsLine(used=tuple(sorted(built)), compiled=tuple(sorted(built - before)))


def _whole(cache: Path) -> set[str]:
    return {entry.name for entry in entries(cache) if whole_entry(entry)}


def _share_process(request: GemmRequest, tasks: Sequence[Task], name: str) -> None:
    """Raises ShareFailed when the process did not come to its end."""
    file = Path(request.scratch) / f"{name}.json"
    share = request.model_copy(update={"mode": "share", "tasks": tuple(tasks)})
    file.write_text(share.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "rayprep.stages.deep_gemm.child", str(file)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    last = GEMM_LINE.validate_json(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
    if isinstance(last, FailLine):
        raise ShareFailed(last)
    if done.returncode != 0 or not isinstance(last, KernelsLine):
        ended = f"{name} ended with status {done.returncode}"
        raise ShareFailed(FailLine(error_type=ErrorType.COMPILE_FAILED, message=ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
