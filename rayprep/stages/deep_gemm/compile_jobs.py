"""Runs compiler commands that the stand-in recorded, side by side, each into an entry of DeepGEMM's cache.

Whatever happens to it, no half entry is ever under an entry's name: see `cache.publish`.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePath
from typing import NamedTuple

from rayprep.base.errors import ErrorType
from rayprep.base.text import one_line, printable
from rayprep.sglang.failure_signs import NO_SPACE
from rayprep.stages.child.failures import ChildError
from rayprep.stages.deep_gemm.cache import CUBIN, SOURCE, Compilers, copy_without_cubin, new_folder, publish

_TOOLCHAIN = re.compile(
    r"headers are incompatible|unsupported GNU version|unsupported.*host compiler|Value '.*' is not defined for option"
    r"|cannot open source file \"cuda|cuda_runtime\.h: No such file|(cicc|ptxas|fatbinary|cudafe\+\+|g\+\+): not found"
    r"|Failed to preprocess host compiler|No such file or directory: '?(g\+\+|gcc|c\+\+)",
    re.IGNORECASE,
)


class CompileJob(NamedTuple):
    """One recorded command."""

    entry: Path
    """The listed one, with all of its files but the cubin."""
    arguments: tuple[str, ...]
    """As the stand-in was called with, the compiler itself left out."""


class Compiled(NamedTuple):
    name: str
    seconds: float


class CompileError(ChildError):
    """One kernel did not compile."""

    def __init__(self, error_type: ErrorType, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.error_type = error_type


def run_jobs(jobs: Sequence[CompileJob], compilers: Compilers, cache: Path, parallel: int) -> Iterator[Compiled]:
    """Compiles all jobs, `parallel` at a time, and yields each as it is in the cache.

    Raises:
        CompileError: the first that failed; those that run then are waited for, the rest is not started.
        OSError: the cache could not be written.
    """
    with ThreadPoolExecutor(max(1, parallel)) as pool:
        futures = [pool.submit(compile_kernel, job, compilers, cache) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def compile_kernel(job: CompileJob, compilers: Compilers, cache: Path) -> Compiled:
    """Compiles one kernel. Raises as `run_jobs` does."""
    started, name = time.monotonic(), job.entry.name
    folder = new_folder(cache)
    try:
        copy_without_cubin(job.entry, folder, compilers)
        _run([compilers.real, *_moved(job.arguments, folder)], folder, name)
        if not (folder / CUBIN).is_file() or not (folder / CUBIN).stat().st_size:
            why = f"{compilers.real} said that it succeeded, but wrote no {CUBIN}"
            raise CompileError(ErrorType.COMPILE_FAILED, name, why)
        publish(folder, cache / "cache" / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Compiled(name, round(time.monotonic() - started, 3))


def _moved(arguments: Sequence[str], folder: Path) -> list[str]:
    """The same command on the folder's own source and cubin. All flags stay: they are part of the kernel's key."""
    own = {name: str(folder / name) for name in (SOURCE, CUBIN)}
    return [own.get(PurePath(argument).name, argument) for argument in arguments]


def _run(command: list[str], folder: Path, name: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        why = f"{command[0]} cannot be run: {error.strerror}"
        raise CompileError(ErrorType.TOOLCHAIN_MISMATCH, name, why) from None
    if done.returncode != 0:
        print(printable(f"{name}: {' '.join(command)}"), done.stdout, sep="\n", flush=True)
        raise compile_error(name, done.stdout, done.returncode)


def compile_error(name: str, output: str, status: int) -> CompileError:
    """What a compiler's output and its exit status come to."""
    said = first_error(output)
    if not said:
        said = f"the compiler was killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return CompileError(_error_type(output), name, said)


def first_error(output: str) -> str:
    """A compiler's first line that names an error, else its first line; empty where it said nothing."""
    lines = [one_line(line) for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\berror\b|\bfatal\b|not found|No space left", line, re.IGNORECASE)]
    return (named or lines or [""])[0][:300]


def _error_type(output: str) -> ErrorType:
    if re.search(NO_SPACE, output):
        return ErrorType.INSUFFICIENT_DISK
    return ErrorType.TOOLCHAIN_MISMATCH if _TOOLCHAIN.search(output) else ErrorType.COMPILE_FAILED
