"""Work that cannot hang the doctor: commands that end in time, and system calls that nobody has to wait for."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def start(work: Callable[[], T]) -> "Future[T]":
    """Begins `work` in a thread. No system call on a dead NFS server ends in time, so no thread is waited for.

    Not an executor: the interpreter waits for an executor's threads when it ends.
    """
    answer: Future[T] = Future()

    def body() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is read
            answer.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return answer


def answer_within(timeout_s: float, what: str, work: Callable[[], T]) -> T:
    """The answer of `work`.

    Raises:
        TimeoutError: it took too long, and goes on.
    """
    answer = start(work)
    if wait([answer], timeout_s).not_done:
        raise TimeoutError(f"{what}: no answer within {timeout_s:.0f} s")
    return answer.result()


@dataclass(frozen=True)
class Ran:
    status: int
    output: str
    """Standard output and standard error, as they came."""

    @property
    def tail(self) -> str:
        """The last line that says something."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


def run_bounded(
    command: Sequence[str], environ: Mapping[str, str], timeout_s: float, folder: Path | None = None
) -> Ran:
    """Runs a command in a process group of its own.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it took too long; it has been killed with its children.
    """
    with subprocess.Popen(
        command,
        env=dict(environ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # The group: a compiler driver that is killed alone leaves its children, and they hold the pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{command[0]} gives no answer within {timeout_s:.0f} s") from None
    return Ran(process.returncode, output)
