"""A host's leases, from asking for them to giving them back: renewed by a thread, and lost rather than doubted.

A holder counts its time to live from when it asked, by its own monotonic clock, which also runs while the process is
stopped. So one that was frozen past its lease finds that out by itself, with the coordinator gone, too.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import ray

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, LockTimeout, StageError
from rayprep.fleet.handles import Handle
from rayprep.model.fleet.leases import Granted, Holder, Queued

CALL_S = 10.0
ASK_EVERY_S = 1.0

Wanted = tuple[str, str]
"""Store and key."""


class Leases:
    """Several leases, held together. A context manager: entering waits for all of them, leaving gives them back.

    Args:
        coordinator: its actor handle.
        wanted: asked for one after another in one order for all hosts, so that no two wait for each other.
        seen: the highest epoch that this host's store has kept for a key.
        waiting: called while somebody else holds one, with who and for how long, or while the coordinator cannot
            grant any, with why.
        deadline: by the monotonic clock.
    """

    def __init__(
        self,
        coordinator: Handle,
        who: Holder,
        wanted: Sequence[Wanted],
        seen: Callable[[str], int],
        waiting: Callable[[Wanted, Queued | HostUnfit], None],
        cancelled: Callable[[], bool],
        deadline: float,
    ) -> None:
        self._coordinator, self._who, self._wanted = coordinator, who, sorted(wanted)
        self._seen, self._waiting, self._cancelled, self._deadline = seen, waiting, cancelled, deadline
        self._held: dict[Wanted, Granted] = {}
        self._until: dict[Wanted, float] = {}
        self._lost = False
        self._unfit: HostUnfit | None = None
        """Why the coordinator could not grant what it was asked for last."""
        self._wake = threading.Event()
        self.waited = False
        """Somebody else held one: what was to be built may be there by now."""
        self.waited_s = 0.0

    @property
    def epochs(self) -> dict[str, int]:
        """Key -> epoch."""
        return {key: granted.epoch for (_, key), granted in self._held.items()}

    def check(self) -> None:
        """Raises StageError `lease_lost` where one is, or may be, somebody else's by now."""
        if self._lost or any(time.monotonic() > until for until in self._until.values()):
            self._lost = True
            raise StageError(
                ErrorType.LEASE_LOST, f"{self._who.host} has lost its lease, so what it was at does not count"
            )

    def __enter__(self) -> "Leases":
        """Raises HostUnfit where the coordinator still cannot grant them, LockTimeout where it has not, Interrupted."""
        renewer = threading.Thread(target=self._renew_all, daemon=True)
        renewer.start()
        started = time.monotonic()
        try:
            self._acquire()
        except BaseException:
            self._give_back()
            raise
        self.waited_s = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _acquire(self) -> None:
        while missing := [each for each in self._wanted if each not in self._held]:
            asked = time.monotonic()
            answer = None
            for wanted, answer in zip(missing, self._ask(missing), strict=False):
                if isinstance(answer, Granted):
                    self._held[wanted], self._until[wanted] = answer, asked + answer.ttl_s
                else:
                    self.waited |= answer.holder is not None
                    self._waiting(wanted, answer)
            if not isinstance(answer, Granted):
                self._await_turn(answer)

    def _await_turn(self, answer: Queued | None) -> None:
        """Returns when it is time to ask again. The first that is not held is the one that is waited for."""
        wanted = next(each for each in self._wanted if each not in self._held)
        if self._unfit:
            self._waiting(wanted, self._unfit)
        if self._cancelled():
            self._withdraw(wanted)
            raise Interrupted
        if time.monotonic() > self._deadline:
            self._withdraw(wanted)
            if self._unfit:
                raise self._unfit
            holder = answer.holder.host if answer and answer.holder else "a coordinator that does not answer"
            raise LockTimeout(f"the lease on {wanted[1]} is with {holder}")
        time.sleep(ASK_EVERY_S)

    def _ask(self, missing: Sequence[Wanted]) -> list[Granted | Queued]:
        """Empty where the coordinator does not answer, for it may be on its way back, or cannot keep what it grants."""
        self._unfit = None
        try:
            asked = self._coordinator.request.remote([(*each, self._seen(each[1])) for each in missing], self._who)
            answers: list[Granted | Queued] = ray.get(asked, timeout=CALL_S)
            return answers
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            self._unfit = cause if isinstance(cause, HostUnfit) else None
            return []

    def _withdraw(self, wanted: Wanted) -> None:
        self._coordinator.withdraw.remote(*wanted, self._who)

    def _renew_all(self) -> None:
        while not self._wake.wait(self._pause_s()):
            held, asked = dict(self._held), time.monotonic()
            if not any(asked >= self._until.get(each, asked) - 2 / 3 * held[each].ttl_s for each in held):
                continue  # nothing is held yet, or not for long
            try:
                answers = ray.get(self._coordinator.renew.remote(_with_epochs(held), self._who), timeout=CALL_S)
            except ray.exceptions.RayError:
                continue  # as long as the time to live lasts, it may come back
            for (wanted, granted), still in zip(held.items(), answers, strict=True):
                if wanted not in self._until:
                    return  # given back meanwhile
                if still and asked <= self._until[wanted]:
                    self._until[wanted] = asked + granted.ttl_s
                else:
                    self._lost = True

    def _pause_s(self) -> float:
        held = list(self._held.values())  # in one step, for another thread may be adding to them
        return min((granted.ttl_s for granted in held), default=3.0) / 3

    def _give_back(self) -> None:
        self._wake.set()
        held, self._held, self._until = self._held, {}, {}
        if held:
            given = self._coordinator.release.remote(_with_epochs(held), self._who)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([given], timeout=CALL_S)


def _with_epochs(held: Mapping[Wanted, Granted]) -> list[tuple[str, str, int]]:
    return [(*wanted, granted.epoch) for wanted, granted in held.items()]
