"""Processes that stay and answer one call at a time, each for a thread of ours. One that dies or hangs is replaced.

A kernel can take the process down that compiles or runs it, and with it the whole CUDA context. What it was doing is
then known, since each does one thing at a time.
"""

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from rayprep.stages.child.failures import failure_line

A = TypeVar("A")
B = TypeVar("B")
_START_S = 300.0
"""For a process to import what it needs."""


class WorkerFailed(Exception):
    """A call raised; the process lives on."""


class WorkerLost(Exception):
    """The process died of what it did, or was ended since it did not answer in time."""


class WorkerKilled(Exception):
    """Somebody ended the process; what it did is not to blame."""


class Worker(Generic[A, B]):
    """One process. `setup` runs in it first and makes the function that answers the calls."""

    def __init__(self, context: SpawnContext | ForkServerContext, setup: Callable[[], Callable[[A], B]]) -> None:
        self._context, self._setup = context, setup
        self._start()

    def _start(self) -> None:
        self._ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._setup, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises WorkerFailed or WorkerLost where the process could not be set up."""
        if not self._is_ready:
            self._answer(_START_S)
            self._is_ready = True

    def call(self, question: A, deadline_s: float) -> B:
        """Raises WorkerFailed where the call raised, WorkerLost where no answer came: another process starts then.

        And WorkerKilled, which ends it all.
        """
        self.wait_until_ready()
        try:
            with contextlib.suppress(OSError):  # of a dead process, of which the answer tells
                self._ours.send(question)
            return cast("B", self._answer(deadline_s))
        except WorkerLost:
            self.end()
            self._start()
            raise

    def _answer(self, deadline_s: float) -> object:
        try:
            if not self._ours.poll(deadline_s):
                raise WorkerLost(f"no answer within {deadline_s:.0f} s")
            ok, answer = self._ours.recv()
        except (EOFError, OSError):
            self._process.join(5.0)
            status = self._process.exitcode
            if status in (-signal.SIGTERM, -signal.SIGKILL):
                raise WorkerKilled(f"a process of the tuner was killed by signal {-status}") from None
            raise WorkerLost(f"the process ended with status {status}") from None
        if not ok:
            raise WorkerFailed(answer)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join(10.0)
        self._ours.close()


def _serve(setup: Callable[[], Callable[[A], B]], theirs: Connection) -> None:
    try:
        answer = setup()
    except Exception as error:  # noqa: BLE001 - whoever asked reports it
        traceback.print_exc()
        theirs.send((False, failure_line(error)))
        return
    theirs.send((True, None))
    with contextlib.suppress(EOFError, OSError):  # whoever asked has gone
        while True:
            question = theirs.recv()
            try:
                reply: tuple[bool, object] = (True, answer(question))
            except Exception as error:  # noqa: BLE001 - the caller's to judge
                reply = (False, failure_line(error))
            theirs.send(reply)


Outcome = tuple[A, B | None, str | None]
"""A question with its answer, or with why there is none."""


def ask_all(
    workers: Sequence[Worker[A, B]],
    groups: Iterable[Sequence[A]],
    deadline_s: float,
    own: Mapping[int, Sequence[Sequence[A]]] = MappingProxyType({}),
) -> Iterator[Outcome[A, B]]:
    """Deals groups of questions to whoever is free, who answers all of one, in its order.

    The outcomes come as they are made.

    Args:
        own: more groups, by the index of the one who has to answer them.

    Raises WorkerKilled, and WorkerFailed or WorkerLost where a process cannot be set up.
    """
    waiting: SimpleQueue[Sequence[A]] = SimpleQueue()
    count = 0
    for group in groups:
        waiting.put(group)
        count += len(group)
    count += sum(len(group) for each in own.values() for group in each)
    made: SimpleQueue[Outcome[A, B] | BaseException] = SimpleQueue()

    def ask(worker: Worker[A, B], question: A) -> None:
        try:
            made.put((question, worker.call(question, deadline_s), None))
        except WorkerFailed as error:
            made.put((question, None, str(error)))
        except WorkerLost as error:
            made.put((question, None, f"lost: {error}"))
            worker.wait_until_ready()

    def work(index: int, worker: Worker[A, B]) -> None:
        try:
            worker.wait_until_ready()
            for question in chain.from_iterable(own.get(index, ())):
                ask(worker, question)
            while True:
                for question in waiting.get_nowait():
                    ask(worker, question)
        except Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised again where the outcomes are read
            made.put(error)

    for index, worker in enumerate(workers):
        if index < count or index in own:
            # Daemons: whoever gives up does not wait for them.
            threading.Thread(target=work, args=(index, worker), daemon=True).start()
    for _ in range(count):
        outcome = made.get()
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome
