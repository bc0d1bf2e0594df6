"""What SGLang, the kernel libraries, compilers and the operating system say when they fail, and what each is a sign of.

One table for whatever fails: a server, of which there is a log, and a stage's child process, of which there is an
exception. Sources: the texts in flashinfer/jit/cpp_ext.py, DeepGEMM's csrc/jit/compiler.hpp (0.1) and include/deep_jit
(0.2), torch/_inductor, triton's driver.c, sglang/srt (entrypoints, model_executor), nvcc, ninja, gcc and ld.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from rayprep.base.errors import ErrorType

NO_SPACE = r"No space left on device|Disk quota exceeded"
OUT_OF_MEMORY = (
    r"OutOfMemoryError(?!: out of resource)|CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY"
    r"|(?:Error|Exception|failed): (?:Triton Error \[CUDA\]|CUDA(?: driver)? error): "
    r"(?:out of memory|CUBLAS_STATUS_ALLOC_FAILED)"
)
"""Of a GPU. Not Inductor's words for a tuning choice that it then ignores: one that asks for more shared memory than a
GPU has (torch/_inductor/runtime/triton_heuristics.py, `_make_launchers`), or whose error stands on a line of its own,
without the exception's type (torch/_inductor/select_algorithm.py, `benchmark_choices`)."""
MORE_MEMORY = "Please try to increase --mem-fraction-static"
_COMPILER = r"(?:nvcc|ninja|ptxas|[gc]\+\+|gcc|clang)(?:-\d+)?"


class Sign(NamedTuple):
    """A row of the table."""

    error_type: ErrorType
    said: re.Pattern[str]
    """What tells wherever it stands, in any line of a log too."""
    raised: re.Pattern[str] | None = None
    """What tells in an exception's text alone: a log may have it in a warning that means nothing."""


SIGNS = (
    Sign(ErrorType.INSUFFICIENT_DISK, re.compile(NO_SPACE)),
    Sign(
        ErrorType.TOOLCHAIN_MISMATCH,
        re.compile(
            r"CUDA compiler and CUDA toolkit headers are incompatible"
            rf"|{_COMPILER}: (?:command )?(?:not found|No such file|Permission denied)"
            rf"|No such file or directory: '[^']*{_COMPILER}'"
            r"|Could not find (?:nvcc|CUDA installation)|nvcc not found|Cannot find ptxas|Failed to find C compiler"
            r"|std::filesystem::exists\(nvcc_path\)|(?:NVCC|NVRTC) version should be|unsupported GNU version"
            r"|NVCC version must be at least|NVCC compiler is not executable|failed to parse NVCC version"
            r"|not home_path\.empty\(\)"
            r"|fatal error: \S+: No such file|cannot find -l|Unsupported gpu architecture"
            r"|Unsupported \.version|ImportError: .*cannot open shared object file|CUDA driver version is insufficient"
        ),
        re.compile(
            r"nvcc_path|cuda_home|headers are incompatible|No CUDA GPUs are available|Found no NVIDIA driver"
            r"|cannot open shared object file|driver version is insufficient|not compiled with CUDA"
            r"|unrecognized command.line option|cannot execute|cannot import name|(?:Python|omp)\.h: No such file"
        ),
    ),
    Sign(
        ErrorType.NVRTC_COMPILE_FAILED,
        re.compile(r"NVRTC_ERROR|NVRTC (?:log:|error|compilation failed)", re.IGNORECASE),
        re.compile(r"NVRTC"),
    ),
    Sign(
        ErrorType.OOM_DURING_WARMUP,
        re.compile(
            rf"{OUT_OF_MEMORY}|{re.escape(MORE_MEMORY)}"
            # The kernel killed a scheduler: the host's own memory is full.
            r"|scheduler died during initialization \(exit code: -9"
        ),
        re.compile(
            r"out of memory|OutOfMemoryError(?!: out of resource)|\bKilled\b|died due to signal 9"
            r"|Cannot allocate memory|virtual memory exhausted|DefaultCPUAllocator"
        ),
    ),
    Sign(ErrorType.PERMISSIONS_UNEXPECTED, re.compile(r"PermissionError: |Read-only file system")),
    Sign(
        ErrorType.COMPILE_FAILED,
        re.compile(
            r"NVCC compilation failed|Ninja build failed|ninja exited with status|PTXAS error|Corrupted JIT cache"
            # DeepGEMM 0.2. Its commands are nvcc's, but for one that makes SASS readable.
            r"|\bcommand failed with exit code \d|missing CUDA CUBIN|NVCC did not produce a valid"
        ),
    ),
)
"""In the order in which they decide: a full disk also makes compilers fail."""


def sign_in(lines: Iterable[str], *, raised: bool = False) -> ErrorType | None:
    """Return what the lines are a sign of, by the first row of the table that one of them has a sign of.

    Args:
        raised: they are an exception's text, not a log's lines.
    """
    lines = tuple(lines)
    found = (sign.error_type for sign in SIGNS if any(_is_sign(line, sign, raised=raised) for line in lines))
    return next(found, None)


def _is_sign(line: str, sign: Sign, *, raised: bool) -> bool:
    return bool(sign.said.search(line) or (raised and sign.raised and sign.raised.search(line)))
