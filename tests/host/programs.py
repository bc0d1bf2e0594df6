"""Programs that a test starts, and that are gone when it is over, however it ends."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import AnyStr

TREE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tree.py"))]
"""`tree.py`, without the time that site-packages take."""


@contextlib.contextmanager
def ended(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Kills the program at the end. Popen's own `with` waits for it, for ever where an assertion has failed."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
