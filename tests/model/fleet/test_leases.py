"""Never two holders, epochs only grow, whoever lost a lease publishes nothing, and whoever waits gets it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError

from rayprep.base.records import read_tolerant, to_json
from rayprep.model.fleet.leases import Granted, Holder, LeaseTable, Queued, may_publish

TTL = 10.0
STORE, KEY = "store-1", "deep_gemm/tiny-tp1-0123456789abcdef"
A, B, C = (Holder(host=f"gpu-{name}", invocation="run-1", node_id=f"node-{name}") for name in "abc")
EMPTY = LeaseTable(ttl_s=TTL)


def ask(table: LeaseTable, who: Holder, now: float, seen_epoch: int = 0) -> tuple[LeaseTable, Granted | Queued]:
    return table.request(STORE, KEY, who, now, seen_epoch)


def held_by_a() -> LeaseTable:
    """Since 0, with B waiting since 1."""
    table, answer = ask(EMPTY, A, 0)
    assert answer == Granted(epoch=1, ttl_s=TTL, fresh=True)
    return ask(table, B, 1)[0]


def test_who_waits_is_told_for_whom_and_since_when() -> None:
    table, answer = ask(held_by_a(), C, 4)
    assert answer == Queued(ahead=1, holder=A, held_for_s=4, grace_s=0)
    # Asking again keeps the place.
    assert ask(table, B, 5)[1] == Queued(ahead=0, holder=A, held_for_s=5, grace_s=0)


def test_asking_again_renews_and_is_no_new_grant() -> None:
    table, answer = ask(held_by_a(), A, 9)
    assert answer == Granted(epoch=1, ttl_s=TTL, fresh=False)
    held = table.lease(STORE, KEY, 18).held
    assert held is not None
    assert (held.since, held.until) == (0, 19)


def test_the_queue_is_served_in_order() -> None:
    table = ask(held_by_a(), C, 2)[0].release(STORE, KEY, A, 1, 3)
    table, answer = ask(table, C, 4)
    assert answer == Queued(ahead=1, holder=None, held_for_s=0, grace_s=0)
    assert ask(table, B, 5)[1] == Granted(epoch=2, ttl_s=TTL, fresh=True)


def test_who_no_longer_asks_loses_its_place() -> None:
    table = ask(held_by_a(), C, 8)[0]
    assert isinstance(ask(table, C, 10.9)[1], Queued)
    assert ask(table, C, 11)[1] == Granted(epoch=2, ttl_s=TTL, fresh=True)


def test_who_asks_again_and_again_keeps_its_place_however_long_it_takes() -> None:
    table = ask(ask(held_by_a(), C, 2)[0], A, 8)[0]
    table = ask(ask(table, B, 9)[0], C, 10)[0]
    assert ask(table, C, 15)[1] == Queued(ahead=1, holder=A, held_for_s=15, grace_s=0)


def test_a_holder_lasts_one_time_to_live_from_its_last_word() -> None:
    table, renewed = held_by_a().renew(STORE, KEY, A, 1, 9.9)
    assert renewed
    assert table.lease(STORE, KEY, 19.8).is_held_by(A)
    assert table.renew(STORE, KEY, A, 1, 19.9) == (table, False)


def test_nobody_renews_or_releases_what_another_holds() -> None:
    table = held_by_a()
    for who, epoch in ((B, 1), (A, 2), (A, 0)):
        assert table.renew(STORE, KEY, who, epoch, 2) == (table, False)
        assert table.release(STORE, KEY, who, epoch, 2) == table
    assert table.withdraw(STORE, KEY, A, 2).lease(STORE, KEY, 2).is_held_by(A)


def test_who_withdraws_is_not_waited_for() -> None:
    table = ask(held_by_a(), C, 2)[0].withdraw(STORE, KEY, B, 3).release(STORE, KEY, A, 1, 3)
    assert isinstance(ask(table, C, 4)[1], Granted)


def test_stores_and_keys_do_not_meet() -> None:
    table = held_by_a()
    for store, key in (("store-2", KEY), (STORE, "another")):
        assert isinstance(table.request(store, key, B, 2)[1], Granted)


def test_a_coordinator_that_came_back_grants_nothing_for_one_time_to_live() -> None:
    table = held_by_a().release(STORE, KEY, A, 1, 2).restored(1000)
    assert ask(table, B, 1004)[1] == Queued(ahead=0, holder=None, held_for_s=0, grace_s=6)
    assert isinstance(table.request("store-2", KEY, C, 1009.9)[1], Queued)
    table, _ = ask(table, B, 1005)
    assert ask(table, B, 1010)[1] == Granted(epoch=2, ttl_s=TTL, fresh=True)


def test_the_known_holder_renews_after_a_restart_whatever_the_new_clock_says() -> None:
    table = held_by_a().restored(-5000)
    assert ask(table, B, -4998)[1] == Queued(ahead=0, holder=A, held_for_s=2, grace_s=8)
    assert table.renew(STORE, KEY, A, 1, -4991)[1]
    assert not table.renew(STORE, KEY, A, 1, -4990)[1]


def test_epochs_go_on_from_what_the_store_has_seen() -> None:
    table = EMPTY.restored(0)
    assert ask(table, A, TTL, seen_epoch=7)[1] == Granted(epoch=8, ttl_s=TTL, fresh=True)


def test_expiring_leaves_the_epoch_and_nobody() -> None:
    table = held_by_a()
    assert not table.idle
    assert not table.expire(10).idle  # B has asked at 1
    after = table.expire(11)
    assert after.idle
    assert after.lease(STORE, KEY, 11).epoch == 1


@pytest.mark.parametrize(
    ("seen", "epoch", "may"), [(0, 1, True), (3, 3, True), (3, 4, True), (3, 2, False), (0, 0, False), (0, -1, False)]
)
def test_a_store_refuses_a_lower_epoch_and_none(seen: int, epoch: int, may: bool) -> None:
    assert may_publish(seen, epoch) is may


def test_the_table_is_one_document_that_reads_back() -> None:
    table = ask(held_by_a(), C, 2)[0].restored(3)
    text = to_json(table)
    assert '"schema_version": "1"' in text
    assert read_tolerant(LeaseTable, text) == table
    with pytest.raises(ValidationError):
        LeaseTable(ttl_s=0)


class _Client:
    """One host as it sees itself: what it was told, counted from when it asked."""

    def __init__(self, who: Holder) -> None:
        self.who = who
        self.epoch = 0
        self.until = 0.0

    def heard(self, epoch: int, asked_at: float) -> None:
        self.epoch, self.until = epoch, asked_at + TTL


class Fleet(RuleBasedStateMachine):
    """Three hosts, one store, and a coordinator whose answers and whole self may be lost at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = self.on_disk = EMPTY
        self.clients = {who: _Client(who) for who in (A, B, C)}
        self.granted: list[tuple[int, Holder]] = []
        self.seen_epoch = 0
        """What the store keeps."""

    clients_ = st.sampled_from([A, B, C])
    spans = st.sampled_from([0.1, TTL / 3, TTL - 0.1, TTL, 2 * TTL])
    delays = st.sampled_from([0.0, 0.0, 0.0, TTL / 3, TTL])

    @rule(span=spans)
    def wait(self, span: float) -> None:
        self.now += span

    @rule(who=clients_, delay=delays, written=st.booleans())
    def request(self, who: Holder, delay: float, written: bool) -> None:
        asked_at, self.now = self.now, self.now + delay
        answer = self._asked(who)
        if written or (isinstance(answer, Granted) and answer.fresh):
            self.on_disk = self.table
        if isinstance(answer, Granted):
            self._told(who, answer, asked_at)

    @rule(who=clients_)
    def request_and_miss_the_answer(self, who: Holder) -> None:
        self._asked(who)
        self.on_disk = self.table

    def _told(self, who: Holder, answer: Granted, asked_at: float) -> None:
        if (answer.epoch, who) not in self.granted:
            assert all(answer.epoch > epoch for epoch, _ in self.granted), "epochs only grow"
            self.granted.append((answer.epoch, who))
        self.clients[who].heard(answer.epoch, asked_at)
        self.seen_epoch = max(self.seen_epoch, answer.epoch)

    @rule(who=clients_, delay=delays, written=st.booleans())
    def renew(self, who: Holder, delay: float, written: bool) -> None:
        """Also by clients whose time is over: a host that was frozen does not know."""
        client, asked_at = self.clients[who], self.now
        self.now += delay
        self.table, renewed = self.table.renew(STORE, KEY, who, client.epoch, self.now)
        self.on_disk = self.table if written else self.on_disk
        if renewed:
            assert self.granted[-1] == (client.epoch, who), "only the last one to be granted can renew"
            client.until = asked_at + TTL
        else:
            client.until = self.now

    @rule(who=clients_, written=st.booleans())
    def release(self, who: Holder, written: bool) -> None:
        client = self.clients[who]
        client.until = self.now
        self.table = self.table.release(STORE, KEY, who, client.epoch, self.now)
        self.on_disk = self.table if written else self.on_disk

    @rule(who=clients_)
    def publish(self, who: Holder) -> None:
        """At any time, however long ago the lease was lost."""
        epoch = self.clients[who].epoch
        if may_publish(self.seen_epoch, epoch):
            assert self.granted[-1] == (epoch, who), "nobody publishes after another was granted"

    @rule()
    def expire(self) -> None:
        self.table = self.table.expire(self.now)

    @rule(down=delays)
    def crash(self, down: float) -> None:
        self.now += down
        self.table = read_tolerant(LeaseTable, to_json(self.on_disk)).restored(self.now)

    @rule()
    def lose_the_file(self) -> None:
        self.table = self.on_disk = EMPTY.restored(self.now)

    @invariant()
    def never_two_holders(self) -> None:
        assert sum(self.now < client.until for client in self.clients.values()) <= 1

    def teardown(self) -> None:
        """Whoever waits gets it: the queue in its order, one time to live after everybody else fell silent."""
        queue = [turn.holder for turn in self.table.lease(STORE, KEY, self.now).waiting]
        for who in queue:  # who has waited for long would lose its place meanwhile
            self._asked(who)
        end = self.now + TTL
        while self.now < end:
            self.now += TTL / 4
            answers = {who: self._asked(who) for who in reversed(queue)}
        for who in queue:
            answer = answers[who] if who == queue[0] else self._asked(who)
            assert isinstance(answer, Granted)
            self.table = self.table.release(STORE, KEY, who, answer.epoch, self.now)

    def _asked(self, who: Holder) -> Granted | Queued:
        self.table, answer = ask(self.table, who, self.now, self.seen_epoch)
        return answer


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=30)
