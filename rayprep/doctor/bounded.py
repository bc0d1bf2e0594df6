"""Work that cannot hang the doctor: commands that end in time, and system calls that nobody has to wait for."""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rayprep.host.environment import passed_on

T = TypeVar("T")

_START_S = 5.0
"""For any more of the commands to be started that are to be killed at once."""
_CLEARED_S = 2.0
"""For whoever waited for a command that was killed to remove its temporary folder."""


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
    def gist(self) -> str:
        """The first line that speaks of an error, else the last that says anything: compilers end with a farewell."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return next(iter(errors or lines[-1:]), f"exit status {self.status}")


def run_bounded(
    command: Sequence[str], environ: Mapping[str, str], timeout_s: float, folder: Path | None = None
) -> Ran:
    """Runs a command in a process group of its own.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it took too long; it has been killed with its children.
    """
    place: Future[int] = Future()
    _running.add(place)
    try:
        return _run(command, environ, timeout_s, folder, place)
    finally:
        _running.discard(place)


def _run(
    command: Sequence[str], environ: Mapping[str, str], timeout_s: float, folder: Path | None, place: "Future[int]"
) -> Ran:
    with subprocess.Popen(
        command,
        env=passed_on(environ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        place.set_result(process.pid)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            raise TimeoutError(f"{command[0]} gives no answer within {timeout_s:.0f} s") from None
    return Ran(process.returncode, output)


class _Running:
    """The commands that run or are about to: on Ctrl-C nobody waits for the threads that wait for them.

    A command is here before it is started. One that was noted afterwards could be missed by an end that comes between.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._leaders: dict[Future[int], threading.Thread] = {}
        """With who waits for them."""
        # Temporary folders go by finalizers, which are called by the exit handler that the first of them registers. The
        # later handler is called first: what still writes there is to be dead by then.
        weakref.finalize(self, lambda: None)
        atexit.register(self._end)

    def add(self, leader: "Future[int]") -> None:
        """
        Raises:
            OSError: the process ends, so nothing is started any more.
        """
        with self._lock:
            if self._over:
                raise InterruptedError("interrupted")
            self._leaders[leader] = threading.current_thread()

    def discard(self, leader: "Future[int]") -> None:
        with self._lock:
            self._leaders.pop(leader, None)

    def _end(self) -> None:
        with self._lock:
            self._over = True
            leaders = dict(self._leaders)
        cleared = []
        # A program on a dead file server never starts, and is not waited for.
        while started := wait(leaders, _START_S, FIRST_COMPLETED).done:
            for leader in started:
                _kill_group(leader.result())
                cleared.append(leaders.pop(leader))
        until = time.monotonic() + _CLEARED_S
        for thread in cleared:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))


_running = _Running()


def _kill_group(leader: int) -> None:
    """A compiler driver that is killed alone leaves its children, and they hold the pipe."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
