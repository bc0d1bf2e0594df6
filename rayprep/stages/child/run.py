"""One child process of a stage as its parent sees it: started under a guard, heard line by line, always ended."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import Record
from rayprep.host.files import read_end
from rayprep.host.layout import open_in_run, open_log
from rayprep.host.process import Child
from rayprep.stages.child.lines import FailLine, StepLine
from rayprep.stages.protocol import BuildContext

_LOG_TAIL = 12
D = TypeVar("D", bound=Record)


def run_child(
    module: str,
    request: Record,
    file: Path,
    env: Mapping[str, str],
    context: BuildContext,
    lines: TypeAdapter[StepLine | FailLine | D],
    what: str,
    died: ErrorType = ErrorType.COMPILE_FAILED,
) -> D:
    """Runs `python -m rayprep.stages.<module> FILE` to its end, and reports its steps. Returns what came of it.

    Args:
        file: takes the request as JSON.
        lines: parses a line of its standard output. Any other belongs to the stage's log.
        what: what the child is, for the errors.
        died: what it is to end without a word.

    Raises:
        Interrupted: the run was cancelled.
        StageError: what the child says stopped it; `died`; `node_lost`, `stage_timeout` or `cleanup_failed`.
    """
    done: list[D] = []
    failed: list[FailLine] = []

    def hear(line: str) -> None:
        try:
            said = lines.validate_json(line)
        except ValidationError:
            keep_line(context, line)
            return
        if isinstance(said, StepLine):
            context.report(said.hint, said.n, said.m)
        elif isinstance(said, FailLine):
            failed.append(said)
        else:
            done.append(said)

    file.write_text(request.model_dump_json(), encoding="utf-8")
    # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
    command = [sys.executable, "-P", "-m", f"rayprep.stages.{module}", str(file)]
    status = run_command(command, env, context, hear, what)
    if status == 0 and done and not failed:
        return done[-1]
    raise _error(status, failed[-1] if failed else None, what, died, context)


def run_command(
    command: Sequence[str], env: Mapping[str, str], context: BuildContext, hear: Callable[[str], None], what: str
) -> int:
    """Runs any program to its end. Returns its exit status, as a guard gives it.

    Args:
        hear: called with each line of its standard output.

    Raises:
        Interrupted: the run was cancelled.
        StageError: `stage_timeout`, or `cleanup_failed`.
    """
    child = Child(command, env, context.log, context.lock_descriptors)
    try:
        with child:
            for line in child.lines(context.deadline, context.cancelled, context.tick):
                hear(line)
            status, cleanup = child.end()
    finally:
        if child.cleanup:
            context.ended(child.cleanup)
    if not cleanup.killed:
        raise StageError(ErrorType.CLEANUP_FAILED, f"a process of the {what} is still alive after its end")
    return status


def keep_line(context: BuildContext, line: str) -> None:
    """What is no line of ours belongs to the stage's log."""
    with open_log(context.log) as log:
        log.write(line.encode(errors="backslashreplace") + b"\n")


def _error(status: int, failed: FailLine | None, what: str, died: ErrorType, context: BuildContext) -> StageError:
    if status < 0:
        # Ray kills a worker's children before the worker itself when its host is lost.
        died, message = ErrorType.NODE_LOST, f"the guard of the {what} was killed by signal {-status}"
    elif failed is not None:
        died, message = failed.error_type, f"{failed.unit}: {failed.message}" if failed.unit else failed.message
    else:
        how = f"signal {status - 128}" if status > 128 else f"status {status}"
        message = f"the {what} ended by {how}"
    return StageError(died, message, log_tail=log_tail(context))


def log_tail(context: BuildContext) -> tuple[str, ...]:
    """The last lines of the stage's log."""
    try:
        return tuple(read_end(open_in_run(context.log, os.O_RDONLY)).splitlines()[-_LOG_TAIL:])
    except OSError:
        return ()
