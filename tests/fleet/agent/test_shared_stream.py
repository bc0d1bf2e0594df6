"""Several readers of one stream: each has all of it, whatever the others do."""

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.fleet.agent import shared_stream
from rayprep.fleet.agent.shared_stream import KEPT, PATIENCE_S, Make, SharedStreams

PIECES = [bytes([number]) for number in range(3 * KEPT)]


class Made:
    """How often a stream was begun, and how far it came."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.prepared, self.begun, self.made, self._fails_at = 0, 0, 0, fails_at

    def __call__(self) -> Make:
        self.prepared += 1
        return self.pieces

    def pieces(self, start: int) -> Iterator[bytes]:
        self.begun += 1
        for piece in PIECES[start:]:
            if self.made == self._fails_at:
                raise OSError("gone")
            self.made += 1
            yield piece


@given(st.lists(st.integers(0, 2), max_size=5 * len(PIECES)))
def test_each_reader_has_all_in_whatever_order_they_read(turns: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_stream, "PATIENCE_S", 0.0)
        streams = SharedStreams()
        readers = [streams.read("it", Made()) for _ in range(3)]
        found: list[list[bytes]] = [[], [], []]
        for turn in turns:
            found[turn] += [piece for piece in [next(readers[turn], b"")] if piece]
        assert [[*had, *reader] for had, reader in zip(found, readers, strict=True)] == [PIECES] * 3
        assert not streams._streams


def test_readers_at_once_share_the_work() -> None:
    streams, made, together = SharedStreams(), Made(), threading.Barrier(3)

    def read(_: int) -> list[bytes]:
        reader = streams.read("it", made)
        first = next(reader)
        together.wait(10)
        return [first, *reader]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(read, range(3))) == [PIECES] * 3
    assert (made.begun, made.made) == (1, len(PIECES))


def test_one_that_stands_still_holds_up_the_others_once() -> None:
    streams, made = SharedStreams(), Made()
    still, quick = streams.read("it", made), streams.read("it", made)
    first = next(still)
    started = time.monotonic()
    assert list(quick) == PIECES
    assert PATIENCE_S <= time.monotonic() - started < 2 * PATIENCE_S
    assert [first, *still] == PIECES
    assert (made.prepared, made.begun) == (1, 2), "of the same files, whatever has changed since"
    assert made.made == len(PIECES) + len(PIECES[1:]), "what it has is not made again: that takes long, and is silent"


def test_one_that_gives_up_holds_up_nobody() -> None:
    streams, made = SharedStreams(), Made()
    gone, quick = streams.read("it", made), streams.read("it", made)
    next(gone)
    next(quick)
    assert isinstance(gone, Generator)
    gone.close()
    started = time.monotonic()
    assert [PIECES[0], *quick] == PIECES
    assert time.monotonic() - started < PATIENCE_S
    assert made.begun == 1


def test_one_that_comes_late_begins_anew_and_one_of_something_else_too() -> None:
    streams, made, other = SharedStreams(), Made(), Made()
    early = streams.read("it", made)
    had = [next(early) for _ in range(KEPT + 1)]
    assert list(streams.read("it", made)) == list(streams.read("that", other)) == PIECES
    assert [*had, *early] == PIECES
    assert (made.begun, other.begun) == (2, 1)


def test_an_error_is_everybodys() -> None:
    streams, made = SharedStreams(), Made(fails_at=2)
    readers = [streams.read("it", made) for _ in range(3)]
    for reader in readers:
        assert next(reader) == PIECES[0]
    assert [next(reader) for reader in readers] == [PIECES[1]] * 3
    for reader in readers:
        with pytest.raises(OSError, match="gone"):
            next(reader)
        well = streams.read("it", Made())
        assert next(well) == PIECES[0], "who comes then begins anew"
        assert isinstance(well, Generator)
        well.close()
    assert made.begun == 1
    assert not streams._streams


def test_one_that_comes_long_after_the_others_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, made = SharedStreams(), Made()
    early = streams.read("it", made)
    next(early)
    monkeypatch.setattr(shared_stream, "TOGETHER_S", 0.0)
    late = streams.read("it", made)
    next(late)
    assert made.prepared == 2


def test_nobody_is_kept_from_another_stream_while_a_piece_is_made() -> None:
    streams, inside, go_on = SharedStreams(), threading.Event(), threading.Event()

    def slow() -> Make:
        inside.set()
        assert go_on.wait(10)
        return Made().pieces

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(streams.read("slow", slow)))
        assert inside.wait(10)
        second = pool.submit(lambda: list(streams.read("slow", slow)))
        assert list(streams.read("quick", Made())) == PIECES
        assert not first.done()
        go_on.set()
        assert [each.result(10) for each in (first, second)] == [PIECES] * 2
