"""What a stage's child process says on its standard output, a line of JSON each; the child's side of `child.run`.

Any number of `StepLine`, and then one line of the stage's own with what came of it, or one `FailLine`.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, TextIO

from rayprep.base.errors import ErrorType
from rayprep.base.records import R, Record, read_tolerant
from rayprep.host.files import read_bytes

Emit = Callable[[Record], None]


class StepLine(Record):
    """Progress: `n` of `m` of what `hint` says are done."""

    event: Literal["step"] = "step"
    hint: str
    n: int | None = None
    m: int | None = None


class FailLine(Record):
    """The child gave up; its exit code is 1."""

    event: Literal["failed"] = "failed"
    error_type: ErrorType
    message: str
    unit: str | None = None
    """What it was at, where that is one thing."""


class UnitFailed(Exception):
    """What one unit failed of is its `__cause__`."""


def claim_stdout() -> TextIO:
    """The real standard output, for our lines alone: what others print to it goes to standard error from now on."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


def answer(
    arguments: Sequence[str],
    kind: type[R],
    work: Callable[[R, Emit], Record],
    failure: Callable[[BaseException], FailLine],
) -> int:
    """Reads the request file that the arguments name, works, and says what came of it. Returns the exit status.

    Args:
        failure: says what stopped the work.
    """
    lines = claim_stdout()

    def emit(line: Record) -> None:
        print(line.model_dump_json(), file=lines, flush=True)

    try:
        emit(work(read_tolerant(kind, read_bytes(arguments[0])), emit))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told in one line
        traceback.print_exc()
        cause = error.__cause__ if isinstance(error, UnitFailed) else None
        emit(failure(cause or error).model_copy(update={"unit": str(error) if cause else None}))
        return 1
    return 0
