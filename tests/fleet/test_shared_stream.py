"""Several readers of one stream: each has all of it, whatever the others do."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.fleet import shared_stream
from rayprep.fleet.shared_stream import KEPT, PATIENCE_S, SharedStreams

PIECES = [bytes([number]) for number in range(3 * KEPT)]


class Made:
    """How often a stream was begun, and how far it came."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.begun, self.made, self._fails_at = 0, 0, fails_at

    def __call__(self) -> Iterator[bytes]:
        self.begun += 1
        for piece in PIECES:
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
    assert made.begun == 2


def test_one_that_gives_up_holds_up_nobody() -> None:
    streams, made = SharedStreams(), Made()
    gone, quick = streams.read("it", made), streams.read("it", made)
    next(gone)
    next(quick)
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
    for reader in readers:
        assert next(reader) == PIECES[1]
        with pytest.raises(OSError, match="gone"):
            next(reader)
    assert made.begun == 1
    assert not streams._streams, "the next one begins anew"
