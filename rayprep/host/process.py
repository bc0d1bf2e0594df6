"""A child process with its whole tree: started under a guard, watched, and always ended by us."""

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import ValidationError

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.environment import CHILD_MARK
from rayprep.host.guard import lives
from rayprep.host.layout import open_log
from rayprep.model.process_end import Cleanup

GRACE_S = 10.0
"""From SIGTERM to SIGKILL, as the contract has it."""
_TICK_S = 0.25
_POLL_S = 0.05
_ROUNDS = 5
_CHUNK = 1 << 16


class Child:
    """A command under a guard. Its standard output comes back line by line, its standard error goes to a log file.

    With `all_to_log` its standard output goes to the log too: a flood of it then never waits for us to read.
    A context manager: leaving it ends the whole tree.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        lock_descriptors: Sequence[int] = (),
        grace_s: float = GRACE_S,
        all_to_log: bool = False,
    ) -> None:
        self._grace_s = grace_s
        self._mark = secrets.token_hex(8)
        self.cleanup: Cleanup | None = None
        self._begun: list[bytes] = []
        """The pieces of a line that has no end yet."""
        report_read, report_write = os.pipe()
        self._report = os.fdopen(report_read, "rb")
        try:
            with open_log(log) as log_file:
                self._guard = subprocess.Popen(
                    # -P: a json.py in the user's folder is not the guard's.
                    [sys.executable, "-P", "-m", "rayprep.host.guard", str(grace_s), str(report_write), *command],
                    stdin=subprocess.PIPE,
                    stdout=log_file if all_to_log else subprocess.PIPE,
                    stderr=log_file,
                    env={**env, CHILD_MARK: self._mark},
                    pass_fds=(report_write, *lock_descriptors),
                    start_new_session=True,
                )
        except BaseException:
            self._report.close()
            raise
        finally:
            os.close(report_write)

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def is_over(self) -> bool:
        """Whether the guard has ended, and the tree with it."""
        return self._guard.poll() is not None

    def command(self) -> psutil.Process | None:
        """The command's own process, or None before it has started: the first that its guard has below it."""
        try:
            below = psutil.Process(self.guard_pid).children()
        except psutil.NoSuchProcess:
            return None
        return min(below, key=lambda process: process.pid, default=None)

    def tree(self) -> list[psutil.Process]:
        """All living processes of the command, whatever sessions they made."""
        try:
            return psutil.Process(self.guard_pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def lines(self, deadline: float, cancelled: Callable[[], bool], tick: Callable[[], None]) -> Iterator[str]:
        """Yields what the command prints until it closes its output. `tick` runs four times a second.

        Args:
            deadline: on the monotonic clock.

        Raises:
            Interrupted: `cancelled()` became true.
            StageError: `stage_timeout` at the deadline.
        """
        output = self._guard.stdout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if cancelled():
                    raise Interrupted
                if time.monotonic() >= deadline:
                    raise StageError(ErrorType.STAGE_TIMEOUT, "the stage ran longer than its time-out")
                # Asked before the pipe is, so that all which a dead guard's tree has said is read first.
                guard_died = self._guard.poll() is not None
                if selector.select(0 if guard_died else _TICK_S):
                    chunk = os.read(output.fileno(), _CHUNK)
                    yield from self._split(chunk)
                    if not chunk:
                        return
                elif guard_died:
                    # Killed hard. What outlived it may hold the output open for ever; `end` sees to that.
                    yield from self._split(b"")
                    return
                tick()

    def _split(self, chunk: bytes) -> Iterator[str]:
        ended, at_all, rest = chunk.rpartition(b"\n")
        if at_all or not chunk:
            whole = b"".join([*self._begun, ended])
            self._begun = []
            if at_all or whole:
                yield from (line.decode(errors="replace") for line in whole.split(b"\n"))
        if rest:
            self._begun.append(rest)

    def end(self) -> tuple[int, Cleanup]:
        """Ends the tree if it still lives. Returns the command's exit status and how the end went."""
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            status = self._guard.wait(self._grace_s + 10.0)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            status = self._guard.wait()
        if self.cleanup is None:
            self.cleanup = self._read_report()
        return status, self.cleanup

    def _read_report(self) -> Cleanup:
        with self._report as report:
            text = report.read()
        try:
            return Cleanup.model_validate_json(text)
        except ValidationError:
            # The guard was killed; whatever of the tree outlived it is found by its mark.
            left = end_marked(lambda: marked_processes(CHILD_MARK, self._mark), self._grace_s)
            return Cleanup(kill_sent=True, killed=not left, timeout_s=self._grace_s)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self.cleanup is None:
            self.end()
        if self._guard.stdout:
            self._guard.stdout.close()


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """Living processes of this user whose environment has `name=value`.

    Whoever holds a store's lock knows that all which carry its STORE_MARK were left behind by an owner that died
    together with its guard. Anybody can set a variable, so another user's process is none of ours, and neither is one
    that runs as this user by a set-user-ID bit.
    """
    mark, own = f"{name}={value}".encode(), {os.geteuid()}
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            if mark in environ.split(b"\0") and set(process.uids()) == own and lives(process):
                found.append(process)
        except (OSError, psutil.Error):
            continue  # ended meanwhile, or another user's
    return found


def end_processes(processes: Sequence[psutil.Process], grace_s: float = GRACE_S) -> list[psutil.Process]:
    """TERM, `grace_s`, KILL. Returns those that are alive all the same."""
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(signum)
        until = time.monotonic() + wait_s
        while (processes := [each for each in processes if lives(each)]) and time.monotonic() < until:
            time.sleep(_POLL_S)
    return list(processes)


def end_marked(find: Callable[[], Sequence[psutil.Process]], grace_s: float = GRACE_S) -> list[psutil.Process]:
    """Ends what `find` finds, as `end_processes` does, until it finds nothing. Returns what is alive all the same.

    What is being ended may have been starting something: a list of processes never has what they start meanwhile.
    """
    for _ in range(_ROUNDS):
        if not (found := find()):
            return []
        if alive := end_processes(found, grace_s):
            return alive
    return list(find())
