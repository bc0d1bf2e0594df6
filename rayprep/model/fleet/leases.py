"""Who may build what in which store: the fleet's lease table, as pure transitions.

A lease is on (store, key): a store is one profiles root as a file system sees it, a key names what is built there.
It lasts one time to live unless it is renewed, and carries a fencing epoch (M. Kleppmann, "How to do distributed
locking", 2016): each new grant has a higher one, and a store keeps the highest that it has seen and refuses files
under a lower one. So a holder that was frozen past its lease can publish nothing, even with the coordinator gone.

What the callers owe:
- Times are seconds of the coordinator's monotonic clock. No other host's clock is ever compared with it, and
  `restored` counts everything anew, for no clock outlives its process.
- A table with a fresh grant is on disk before the answer leaves. Any other change may be lost without harm.
- A new holder lets the store see its epoch before it builds, and renews well within the time to live. It counts that
  from when it asked, so that it stops before the table lets anybody else in.
- Who waits asks again well within the time to live, too, or loses its place.
"""

from collections.abc import Callable

from pydantic import Field

from rayprep.base.records import Record, Utf8
from rayprep.base.sealed import Sealed


def may_publish(seen_epoch: int, epoch: int) -> bool:
    """Whether a store that has seen `seen_epoch` (0: none yet) takes files under `epoch` (0: never granted)."""
    return epoch >= max(seen_epoch, 1)


class Holder(Record):
    """Who holds or waits. Equal ones are one: a second attempt beside the first needs an invocation of its own."""

    host: Utf8
    invocation: str
    node_id: str
    """Ray's. A host that leaves and returns has a new one."""


class Turn(Record):
    """A place in the table, as holder or in the queue, and how long it lasts if nothing more is heard."""

    holder: Holder
    since: float
    until: float


class Granted(Record):
    """The asker holds the lease."""

    epoch: int
    ttl_s: float
    """From when it asked."""
    fresh: bool
    """A new grant, and not one that is asked for again: the table must be on disk before this is said."""


class Queued(Record):
    """The asker has to wait, and to ask again."""

    ahead: int
    """How many others wait before it."""
    holder: Holder | None
    held_for_s: float
    """Since the grant, or since the coordinator's restart; 0 where nobody holds it."""
    grace_s: float
    """Until anything is granted at all after that restart; 0 once it is."""


class Lease(Record):
    """One (store, key): its holder, and who waits, in order. Stays when nobody does either, to keep the epoch."""

    epoch: int = 0
    """Of the last grant; 0 before the first."""
    held: Turn | None = None
    waiting: tuple[Turn, ...] = ()

    @property
    def idle(self) -> bool:
        return self.held is None and not self.waiting

    def is_held_by(self, who: Holder) -> bool:
        return self.held is not None and self.held.holder == who

    def at(self, now: float) -> "Lease":
        """Without those whose time has run out."""
        return self._each(lambda turn: turn if now < turn.until else None)

    def without(self, who: Holder) -> "Lease":
        return self._each(lambda turn: None if turn.holder == who else turn)

    def prolonged(self, who: Holder, until: float) -> "Lease":
        """With the turn of `who`, as holder or in the queue, lasting until then."""
        return self._each(lambda turn: _lasting(turn, turn.since, until) if turn.holder == who else turn)

    def counted_anew(self, now: float, until: float) -> "Lease":
        """With everybody where they were, as if they had come this moment."""
        return self._each(lambda turn: _lasting(turn, now, until))

    def _each(self, change: Callable[[Turn], Turn | None]) -> "Lease":
        waiting = tuple(turn for turn in map(change, self.waiting) if turn)
        return Lease(epoch=self.epoch, held=change(self.held) if self.held else None, waiting=waiting)


def _lasting(turn: Turn, since: float, until: float) -> Turn:
    return Turn(holder=turn.holder, since=since, until=until)


class LeaseTable(Sealed):
    """All leases, and the coordinator's state file. Every change gives a new table; the old one stays as it was."""

    schema_version: str = "1"
    ttl_s: float = Field(gt=0, allow_inf_nan=False)
    restored_at: float | None = None
    """When the coordinator came back, by its new clock; null in its first life."""
    leases: dict[str, dict[str, Lease]] = Field(default_factory=dict)
    """Store -> key -> lease."""

    def lease(self, store: str, key: str, now: float) -> Lease:
        return self.leases.get(store, {}).get(key, Lease()).at(now)

    @property
    def idle(self) -> bool:
        """Nobody holds or waits. Call `expire` before, or the dead are counted."""
        return all(lease.idle for keys in self.leases.values() for lease in keys.values())

    def request(
        self, store: str, key: str, who: Holder, now: float, seen_epoch: int = 0
    ) -> tuple["LeaseTable", Granted | Queued]:
        """Grants the lease to the first in the queue when nobody holds it; asking again is renewing.

        Args:
            seen_epoch: the highest that the asker's store has kept. A coordinator that has lost its file, or that
                was started anew on another host, goes on from there.
        """
        lease, until = self.lease(store, key, now), now + self.ttl_s
        if lease.is_held_by(who):
            return self._with(store, key, lease.prolonged(who, until)), self._granted(lease.epoch, fresh=False)
        lease = _queued(lease, Turn(holder=who, since=now, until=until))
        first, *others = lease.waiting
        if first.holder == who and lease.held is None and not self._grace_s(now):
            epoch = max(lease.epoch, seen_epoch) + 1
            held = Turn(holder=who, since=now, until=until)
            return self._with(store, key, Lease(epoch=epoch, held=held, waiting=tuple(others))), self._granted(epoch)
        return self._with(store, key, lease), self._place(lease, who, now)

    def renew(self, store: str, key: str, who: Holder, epoch: int, now: float) -> tuple["LeaseTable", bool]:
        """False where `who` does not hold it under `epoch` any more: it must stop what it does at once."""
        lease = self.lease(store, key, now)
        if not lease.is_held_by(who) or lease.epoch != epoch:
            return self, False
        return self._with(store, key, lease.prolonged(who, now + self.ttl_s)), True

    def release(self, store: str, key: str, who: Holder, epoch: int, now: float) -> "LeaseTable":
        """Does nothing where `who` does not hold it under `epoch`, as when the call comes late or twice."""
        lease = self.lease(store, key, now)
        if not lease.is_held_by(who) or lease.epoch != epoch:
            return self
        return self._with(store, key, lease.without(who))

    def withdraw(self, store: str, key: str, who: Holder, now: float) -> "LeaseTable":
        """Takes `who` out of the queue; does nothing to a holder."""
        lease = self.lease(store, key, now)
        return self if lease.is_held_by(who) else self._with(store, key, lease.without(who))

    def forget(self, who: Holder) -> "LeaseTable":
        """Without `who`, wherever it holds or waits. Only for one that is known to be dead, and not just silent."""
        return self._mapped(lambda lease: lease.without(who))

    def expire(self, now: float) -> "LeaseTable":
        """Without those whose time has run out. Every other transition looks for itself; this is for what is shown."""
        return self._mapped(lambda lease: lease.at(now))

    def restored(self, now: float) -> "LeaseTable":
        """The table as its file was read by a new coordinator, which grants nothing for one time to live.

        The holder that the file names keeps its lease for as long, and may renew it. Where the file is lost, an empty
        table is restored: a holder that it does not know has stopped by the time that anybody else is let in.
        """
        anew = self._mapped(lambda lease: lease.counted_anew(now, now + self.ttl_s))
        return anew.model_copy(update={"restored_at": now})

    def _mapped(self, change: Callable[[Lease], Lease]) -> "LeaseTable":
        changed = {store: {key: change(lease) for key, lease in keys.items()} for store, keys in self.leases.items()}
        return self.model_copy(update={"leases": changed})

    def _with(self, store: str, key: str, lease: Lease) -> "LeaseTable":
        keys = {**self.leases.get(store, {}), key: lease}
        return self.model_copy(update={"leases": {**self.leases, store: keys}})

    def _granted(self, epoch: int, *, fresh: bool = True) -> Granted:
        return Granted(epoch=epoch, ttl_s=self.ttl_s, fresh=fresh)

    def _grace_s(self, now: float) -> float:
        return 0.0 if self.restored_at is None else max(0.0, self.restored_at + self.ttl_s - now)

    def _place(self, lease: Lease, who: Holder, now: float) -> Queued:
        held = lease.held
        return Queued(
            ahead=[turn.holder for turn in lease.waiting].index(who),
            holder=held.holder if held else None,
            held_for_s=now - held.since if held else 0.0,
            grace_s=self._grace_s(now),
        )


def _queued(lease: Lease, turn: Turn) -> Lease:
    """With `turn` at the end of the queue, or in its old place there."""
    if any(each.holder == turn.holder for each in lease.waiting):
        return lease.prolonged(turn.holder, turn.until)
    return lease.model_copy(update={"waiting": (*lease.waiting, turn)})
