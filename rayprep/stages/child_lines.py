"""A child process's own lines on standard output: the child's side of `child_run`."""

import os
from typing import TextIO


def claim_stdout() -> TextIO:
    """The real standard output, for our lines alone: what others print to it goes to standard error from now on."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines
