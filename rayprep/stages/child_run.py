"""One child process of a stage as its parent sees it: started under a guard, heard line by line, always ended."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rayprep.host.process import Child
from rayprep.model.base import Record
from rayprep.model.errors import ErrorType, StageError
from rayprep.stages.protocol import BuildContext

_LOG_TAIL = 12


def run_child(
    module: str,
    request: Record,
    file: Path,
    env: Mapping[str, str],
    context: BuildContext,
    hear: Callable[[str], None],
    what: str,
) -> int:
    """Runs `python -m rayprep.stages.<module> FILE` to its end. Returns its exit status, as a guard gives it.

    Args:
        file: takes the request as JSON.
        hear: called with each line of its standard output.
        what: what it is a process of, for the error.

    Raises:
        Interrupted: the run was cancelled.
        StageError: `stage_timeout`, or `cleanup_failed`.
    """
    file.write_text(request.model_dump_json(), encoding="utf-8")
    # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
    command = [sys.executable, "-P", "-m", f"rayprep.stages.{module}", str(file)]
    return run_command(command, env, context, hear, what)


def run_command(
    command: Sequence[str], env: Mapping[str, str], context: BuildContext, hear: Callable[[str], None], what: str
) -> int:
    """The same for any program."""
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
    with context.log.open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def lost(status: int, what: str, context: BuildContext) -> StageError | None:
    """The error of a child whose guard was killed; None where it was not."""
    if status >= 0:
        return None
    # Ray kills a worker's children before the worker itself when its host is lost.
    message = f"the guard of the {what} was killed by signal {-status}"
    return StageError(ErrorType.NODE_LOST, message, log_tail=log_tail(context))


def ended(status: int, what: str, context: BuildContext) -> StageError:
    """The error of a child that ended without saying why."""
    how = f"signal {status - 128}" if status > 128 else f"status {status}"
    return StageError(ErrorType.COMPILE_FAILED, f"the {what} ended by {how}", log_tail=log_tail(context))


def log_tail(context: BuildContext) -> tuple[str, ...]:
    """The last lines of the stage's log."""
    try:
        text = context.log.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-_LOG_TAIL:])
