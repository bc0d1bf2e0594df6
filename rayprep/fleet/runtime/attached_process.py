"""The process that is attached to Ray in our place, as its owner has it: never waited for in vain, and always ended."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import psutil

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.fleet.messages import CANCEL, Alive, Attach, FleetJob, HostJob, Outcome
from rayprep.host.environment import RUN_MARK
from rayprep.host.interrupts import Interrupts
from rayprep.host.process import GRACE_S, end_marked, end_processes, marked_processes
from rayprep.model.events import Event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.result import PrepResult
from rayprep.report.host_view import View

POLL_S = 0.25
START_S = 180.0
"""For Ray to start, or to be joined, where its files lie cold on a network file system."""
SILENCE_S = 90.0
"""More than any single call of Ray may take, each of which has a deadline."""
CANCELLED_SILENCE_S = 15.0
END_S = 5.0
"""To take leave of Ray."""
AGENT_GRACE_S = 2.0
_STANDARD_ERROR = 2
_ENDED = object()


class RayProcess:
    """A context manager; leaving it ends the process, with the agent that it had on this host.

    Args:
        interrupts: passed on, once they are a flag.
        env: of the process, and of a Ray that it starts.
        folder: that it runs in. Ray's workers import what lies there, so it is none that others may write to.
    """

    def __init__(self, interrupts: Interrupts, env: Mapping[str, str], folder: Path) -> None:
        self._interrupts = interrupts
        self._messages = queue.SimpleQueue[object]()
        self._agent: psutil.Process | None = None
        self._busy = False
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
            command = [sys.executable, "-P", "-m", "rayprep.fleet.attached", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STANDARD_ERROR,  # Ray tells there of a worker that died, and ours is read by tools
                start_new_session=True,  # Ctrl-C is for us alone
            )
        self._connection = Connection(ours.detach())
        threading.Thread(target=self._read, daemon=True).start()

    def attach(self, address: str | None, sessions: Path | None = None, *, debug: bool = False) -> None:
        """Returns once it is attached: to the cluster at `address`, or to a Ray of its own in `sessions`.

        Raises:
            HostUnfit: it cannot be, or not in time.
            Interrupted: while it is waited for.
        """
        self._order(Attach(address, sessions, debug))
        deadline = time.monotonic() + START_S
        while self._busy:
            message = self._next()
            if isinstance(message, Outcome):
                self._value(message)
            elif message is _ENDED:
                raise _unavailable(f"Ray has ended the process that was to be attached to it{self._how()}")
            elif self._interrupts.asked:
                raise Interrupted
            elif time.monotonic() > deadline:
                raise _unavailable(f"Ray cannot be started or joined within {START_S:.0f} s")

    def prepare_host(self, job: HostJob, view: View) -> PrepResult:
        """The job's result; what is said meanwhile is shown.

        Raises:
            RayprepError: there is none, and it is still to be closed.
        """
        result = self._carry_out(job, view, lambda _: None)
        assert isinstance(result, PrepResult)
        return result

    def prepare_fleet(self, job: FleetJob, view: View, update: Callable[[FleetResult], None]) -> FleetResult:
        """The job's result; `update` takes each of its states until then.

        Raises:
            RayprepError: there is none, and the last state is still to be closed.
        """
        result = self._carry_out(job, view, update)
        assert isinstance(result, FleetResult)
        return result

    def _carry_out(self, job: HostJob | FleetJob, view: View, update: Callable[[FleetResult], None]) -> object:
        self._order(job)
        cancelled, heard = False, time.monotonic()
        while True:
            message = self._next()
            if message is not None:
                heard = time.monotonic()
            if isinstance(message, Outcome):
                return self._value(message)
            if isinstance(message, Event):
                view.show(message)
            elif isinstance(message, FleetResult):
                update(message)
            elif isinstance(message, Alive):
                self._know(message.agent_pid)
                view.refresh()
            elif message is _ENDED:
                self._fail(f"Ray has ended the process that was attached to it{self._how()}")
            if self._interrupts.asked and not cancelled:
                cancelled, heard = True, time.monotonic()
                self._send(CANCEL)
            if time.monotonic() - heard > (CANCELLED_SILENCE_S if cancelled else SILENCE_S):
                self._fail(f"Ray has not answered for {SILENCE_S:.0f} s")

    def _read(self) -> None:
        """In a thread, for a message may come in halves."""
        try:
            while True:
                self._messages.put(self._connection.recv())
        except Exception:  # noqa: BLE001 - by which it learns of the end, or of a message that was cut off by it
            self._messages.put(_ENDED)

    def _next(self) -> object:
        """A message, or None where there is none for a moment."""
        try:
            return self._messages.get(timeout=POLL_S)
        except queue.Empty:
            return None

    def _order(self, order: object) -> None:
        self._busy = True
        self._send(order)

    def _send(self, order: object) -> None:
        with contextlib.suppress(OSError):  # it has ended, as `_read` will tell
            self._connection.send(order)

    def _value(self, outcome: Outcome) -> object:
        self._busy = False
        if isinstance(outcome.value, RayprepError):
            raise outcome.value
        return outcome.value

    def _know(self, agent_pid: int | None) -> None:
        if agent_pid is not None and (self._agent is None or self._agent.pid != agent_pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._agent = psutil.Process(agent_pid)

    def _fail(self, message: str) -> NoReturn:
        raise Interrupted if self._interrupts.asked else HostUnfit(message, error_type=ErrorType.NODE_LOST)

    def _how(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(END_S)
            return f" by {signal.Signals(-status).name}" if status < 0 else f" with exit status {status}"
        return ""

    def __enter__(self) -> "RayProcess":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._busy:
                self._send(CANCEL)
                self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            pass  # a Ray that is not to be taken leave of
        finally:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._connection.close()
            if self._agent is not None:
                end_processes([self._agent], AGENT_GRACE_S)


def _unavailable(message: str) -> HostUnfit:
    return HostUnfit(message, error_type=ErrorType.RAY_UNAVAILABLE)


def leave_nothing(invocation: str) -> None:
    """Waits for the guards of a dead agent to end their trees; ends by hand what outlived them."""
    deadline = time.monotonic() + GRACE_S + 5.0
    while marked_processes(RUN_MARK, invocation) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    end_marked(lambda: marked_processes(RUN_MARK, invocation))
