"""What the `flashinfer` stage and its child say to each other, and what a failed compile means.

The parent writes one `ChildRequest` to a file; the child answers as `child_lines` says, in the end with one
`ModulesLine`. No torch and no flashinfer here.
"""

import errno
import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from rayprep.model.attention import FlashInferModule
from rayprep.model.base import Record
from rayprep.model.errors import ErrorType
from rayprep.model.server_failure import NO_SPACE
from rayprep.model.text import printable
from rayprep.stages.child_lines import FailLine, StepLine


def _checked_absolute(path: str) -> str:
    if not PurePath(path).is_absolute():
        raise ValueError("must be an absolute path")
    return path


class ModuleDone(Record):
    """One module."""

    unit: str
    name: str
    """FlashInfer's own name of the module, which is its folder's too."""
    seconds: float
    compiled: bool
    """There was work to do; in a check, there would be."""
    folder: str | None
    """Where it was built, below the workspace, POSIX. Null for a module that was installed compiled."""


class ModulesLine(Record):
    """All modules are done."""

    event: Literal["modules"] = "modules"
    modules: tuple[ModuleDone, ...]


class ChildRequest(Record):
    """What the child is to build, or to check: `modules` in mode `build`, `built` in mode `check`."""

    mode: Literal["build", "check"]
    workspace: Annotated[str, AfterValidator(_checked_absolute)]
    """The same as the child's FLASHINFER_WORKSPACE_BASE."""
    modules: tuple[FlashInferModule, ...] = ()
    built: tuple[ModuleDone, ...] = ()


ChildLine = Annotated[StepLine | ModulesLine | FailLine, Field(discriminator="event")]
CHILD_LINE: TypeAdapter[StepLine | FailLine | ModulesLine] = TypeAdapter(ChildLine)
"""Parses one line of the child's standard output."""

_SIGNS = (
    (ErrorType.INSUFFICIENT_DISK, NO_SPACE),
    (
        ErrorType.TOOLCHAIN_MISMATCH,
        r"CUDA compiler and CUDA toolkit headers are incompatible|Could not find nvcc|unsupported GNU version"
        r"|Unsupported gpu architecture|cannot find -l|fatal error: \S+: No such file"
        r"|(nvcc|\+\+|gcc|clang)(-\d+)?: (command )?(not found|No such file|Permission denied)",
    ),
    (
        ErrorType.OOM_DURING_WARMUP,
        r"\bKilled\b|died due to signal 9|Cannot allocate memory|virtual memory exhausted",
    ),
)
"""In the order in which they are looked for: a full disk also makes compilers fail."""


def failure(error: BaseException) -> FailLine:
    """Says what stopped the child. `run_ninja` raises RuntimeError with all that ninja printed (flashinfer 0.6.14)."""
    return FailLine(error_type=_error_type(error), message=printable(_one_line(error)))


def _error_type(error: BaseException) -> ErrorType:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ErrorType.INSUFFICIENT_DISK
    if isinstance(error, MemoryError):
        return ErrorType.OOM_DURING_WARMUP
    # No ninja, no nvcc, or no flashinfer.
    if isinstance(error, ModuleNotFoundError | FileNotFoundError):
        return ErrorType.TOOLCHAIN_MISMATCH
    # Another flashinfer: a generator is called otherwise, or with other arguments.
    if isinstance(error, AttributeError | TypeError):
        return ErrorType.UNSUPPORTED
    text = str(error)
    return next((each for each, sign in _SIGNS if re.search(sign, text)), ErrorType.COMPILE_FAILED)


def _one_line(error: BaseException) -> str:
    """Of the compilers' output the first line that names an error, else the first that says anything."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # ninja -v repeats each command, with a number before it when it starts and below FAILED when it has failed.
    said = [line for line in lines if not line.startswith(("[", "FAILED:", "ninja: build stopped"))]
    signs = r"\berror\b|\bfatal\b|undefined reference|" + "|".join(sign for _, sign in _SIGNS)
    named = [line for line in said if re.search(signs, line, re.IGNORECASE)]
    line = (named or said or [""])[0]
    return (line if named else f"{type(error).__name__}: {line}")[:300]
