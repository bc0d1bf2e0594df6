"""What stopped a stage's child process, as one line and one error type."""

import errno
import os
import re
from pathlib import PurePath

from rayprep.base.errors import ErrorType, RayprepError, causes
from rayprep.base.text import one_line, printable
from rayprep.sglang.failure_signs import sign_in
from rayprep.stages.child.lines import FailLine

_MOST = 300
"""Characters of a message."""
_NINJA_SAYS = ("[", "FAILED:", "ninja: build stopped", "ninja: Entering directory", "Ninja build failed")
"""It repeats each command, with a number before it when it starts and below FAILED when it has failed."""
_NAMES_AN_ERROR = re.compile(r"\berror\b|\bfatal\b|undefined reference", re.IGNORECASE)
_OF_DEEP_GEMM = re.compile(
    r"Assertion error \(.*: command failed with exit code \d+:\n.*\n((?s:.*?))(?:\nC\+\+ trace \(|\Z)"
)
"""From 0.2 on: the command, and what it printed. Source: include/deep_jit/utils/{command,exception}.hpp."""
_TOOLS = frozenset({"ninja", "nvcc", "g++", "gcc", "c++", "cc", "clang", "clang++", "ptxas"})
_BY_NAME = {
    "OutOfMemoryError": ErrorType.OOM_DURING_WARMUP,
    "InvalidCxxCompiler": ErrorType.TOOLCHAIN_MISMATCH,
    "TritonMissing": ErrorType.TOOLCHAIN_MISMATCH,
    "GPUTooOldForTriton": ErrorType.TOOLCHAIN_MISMATCH,
}
"""Exceptions of torch's, which is not imported to look at them."""


class ChildError(Exception):
    """What a child gives up with, and of what type that is."""

    error_type = ErrorType.COMPILE_FAILED


def failure(error: BaseException, otherwise: ErrorType = ErrorType.COMPILE_FAILED) -> FailLine:
    """Return the line that tells of it: of its chain our own exception, else the innermost that is a sign of something.

    Args:
        otherwise: the type of what is a sign of nothing.
    """
    chain = list(causes(error))[::-1]
    ours = [cause for cause in chain if isinstance(cause, ChildError | RayprepError)]
    for cause in ours or chain:
        if error_type := _type_of(cause):
            return FailLine(error_type=error_type, message=failure_line(cause))
    compilers = [cause for cause in chain if _output_of(cause)]
    return FailLine(error_type=otherwise, message=failure_line((compilers or chain)[0]))


def failure_line(error: BaseException) -> str:
    """Return one line: of a compiler's output the first that names an error; else the type, and what it says first."""
    if isinstance(error, RayprepError):
        return error.line
    if output := _output_of(error):
        lines = [line for line in _lines(output) if not line.startswith(_NINJA_SAYS)]
        named = [line for line in lines if _NAMES_AN_ERROR.search(line) or sign_in([line], raised=True)]
        return printable((named or lines or _lines(output))[0])[:_MOST]
    first = (_lines(str(error)) or [""])[0]
    return printable(first if isinstance(error, ChildError) else f"{type(error).__name__}: {first}")[:_MOST]


def _lines(text: str) -> list[str]:
    return [one_line(line) for line in text.splitlines() if line.strip()]


def _output_of(error: BaseException) -> str:
    """Return what a compiler printed, where the exception has it: torch's as `output`, others in the message."""
    output = getattr(error, "output", None)
    if isinstance(output, str) and output.strip():
        return output
    text = str(error)
    if match := _OF_DEEP_GEMM.match(text):
        return match[1].strip()
    return text if text.startswith("Ninja build failed") else ""


def _type_of(error: BaseException) -> ErrorType | None:
    if isinstance(error, ChildError | RayprepError):
        return error.error_type
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ErrorType.INSUFFICIENT_DISK
    if isinstance(error, MemoryError):
        return ErrorType.OOM_DURING_WARMUP
    if isinstance(error, ModuleNotFoundError) or _is_a_tool_missing(error):
        return ErrorType.TOOLCHAIN_MISMATCH
    named = _BY_NAME.get(type(error).__name__)
    return named or sign_in(_lines(_output_of(error) or str(error)), raised=True)


def _is_a_tool_missing(error: BaseException) -> bool:
    if not isinstance(error, FileNotFoundError | PermissionError):
        return False
    compiler = os.environ.get("CXX", "g++")
    return str(error.filename) == compiler or PurePath(str(error.filename)).name in (*_TOOLS, PurePath(compiler).name)
