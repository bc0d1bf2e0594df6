"""What a command says: every command writes through this module, and through `Screen` where it draws."""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rayprep.base.text import one_line, printable
from rayprep.report.screen import write_json, write_line, write_trace

if TYPE_CHECKING:
    from rayprep.base.records import Record

_LONGEST = 1000
"""Characters of an error's line."""


def line(text: str, *, to_stderr: bool = False) -> None:
    """One line for people."""
    write_line(text, sys.stderr if to_stderr else sys.stdout)


def lines(texts: Iterable[str], *, to_stderr: bool = False) -> None:
    for text in texts:
        line(text, to_stderr=to_stderr)


def for_programs(text: str) -> None:
    """One line that a program takes a path from: in the encoding of the file system, whatever the stream's."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        line(text)
        return
    sys.stdout.flush()
    buffer.write(os.fsencode(printable(text)) + b"\n")
    buffer.flush()


def document(record: "Record", *, to_stderr: bool = False) -> None:
    """A record as indented JSON."""
    from rayprep.base.records import to_json  # with pydantic, which --help does without

    json_text(to_json(record), to_stderr=to_stderr)


def json_text(text: str, *, to_stderr: bool = False) -> None:
    """JSON as it is laid out already."""
    write_json(text, sys.stderr if to_stderr else sys.stdout)


def question(text: str) -> None:
    """Asks on standard error; the answer is typed behind it."""
    print(printable(text), end=" ", file=sys.stderr, flush=True)


def error(kind: str, text: str) -> None:
    """One line on standard error."""
    message = one_line(text)
    if len(message) > _LONGEST:  # somebody's whole file in an argument
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    line(f"rayprep: error [{kind}]: {message}", to_stderr=True)


def warn(text: str) -> None:
    """One line on standard error, where what was asked for goes to standard output."""
    line(f"rayprep: warning: {one_line(text)}", to_stderr=True)


def trace(problem: BaseException) -> None:
    """Where an exception came from, as Python shows it."""
    write_trace(problem, sys.stderr)
