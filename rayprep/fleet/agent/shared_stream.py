"""One stream for several readers: each of its pieces is made once, by whichever reader is the first to need it.

The readers keep together: a few pieces are kept, and whoever is ahead waits for the others, a while. Who still lags
then has the rest made for itself alone, so that a slow reader, or a dead one, costs the others that while and no more.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator

KEPT = 4
"""So many pieces of a stream are kept."""
PATIENCE_S = 1.0
TOGETHER_S = 5.0
"""Who comes later begins a stream of its own: what it is of may have changed."""

Make = Callable[[int], Iterator[bytes]]
"""Begins the stream after so many of its bytes, which are the same each time. It gives no piece that is empty."""


class SharedStreams:
    """The streams that are being read now, by what they are of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[Hashable, _SharedStream] = {}

    def read(self, what: Hashable, prepare: Callable[[], Make]) -> Iterator[bytes]:
        """Reads from the first piece on, together with those that began a moment ago.

        Args:
            prepare: called once for all of them. What it or the stream raises, each of them raises.
        """
        reader = object()
        with self._lock:
            stream = self._streams.get(what)
            if stream is None or not stream.join(reader):
                stream = self._streams[what] = _SharedStream(prepare)
                stream.join(reader)
        try:
            yield from stream.pieces(reader)
        finally:
            with self._lock:
                if stream.leave(reader) and self._streams.get(what) is stream:
                    del self._streams[what]


class _SharedStream:
    """Its lock is never held while a piece is made, however long that takes."""

    def __init__(self, prepare: Callable[[], Make]) -> None:
        self._prepare = prepare
        self._make: Make | None = None
        self._stream: Iterator[bytes] = iter(())
        self._began = time.monotonic()
        self._kept: deque[bytes] = deque()
        self._first = 0
        """The number of the oldest piece that is kept."""
        self._wants: dict[object, int] = {}
        """Reader -> the number of the piece that it wants next. Who has lagged too far is none of them."""
        self._making = False
        """One of the readers is at it."""
        self._ended: Exception | None = None
        """By what: StopIteration, or an error that every reader is to have."""
        self._changed = threading.Condition()

    def join(self, reader: object) -> bool:
        """Whether it may: the first piece is there or to come."""
        with self._changed:
            failed = self._ended is not None and not isinstance(self._ended, StopIteration)
            may = not self._first and not failed and time.monotonic() - self._began < TOGETHER_S
            if may:
                self._wants[reader] = 0
            return may

    def leave(self, reader: object) -> bool:
        """Whether it was the last."""
        with self._changed:
            self._wants.pop(reader, None)
            self._changed.notify_all()
            return not self._wants

    def pieces(self, reader: object) -> Iterator[bytes]:
        had = 0
        for number in itertools.count():
            piece = self._piece(reader, number)
            if piece is None and self._make:
                yield from self._make(had)
            if not piece:
                return
            had += len(piece)
            yield piece

    def _piece(self, reader: object, number: int) -> bytes | None:
        """The piece of that number, nothing at the end, or None where it is kept no more."""
        with self._changed:
            if reader in self._wants:
                self._wants[reader] = number
                self._changed.notify_all()
            self._see_to(number)
            if number < self._first:
                return None
            if self._made(number):
                return self._kept[number - self._first]
            if isinstance(self._ended, StopIteration):
                return b""
            assert self._ended is not None
            raise self._ended

    def _see_to(self, number: int) -> None:
        """Waits for the piece, or for the others, and makes it where nobody else does."""
        until = time.monotonic() + PATIENCE_S
        while not self._made(number) and self._ended is None:
            patient = time.monotonic() < until and not self._may_go_on()
            if self._making or patient:
                self._changed.wait(PATIENCE_S if self._making else max(0.0, until - time.monotonic()))
            else:
                self._make_one()

    def _made(self, number: int) -> bool:
        return number < self._first + len(self._kept)

    def _may_go_on(self) -> bool:
        """Whether there is room for one more, or nobody wants the oldest any more."""
        return len(self._kept) < KEPT or self._first not in self._wants.values()

    def _make_one(self) -> None:
        self._making = True
        piece, ended = b"", Exception("it was given up in the middle")
        self._changed.release()
        try:
            piece = self._next()
        except Exception as error:  # noqa: BLE001 - whoever reads has it
            ended = error
        finally:
            self._changed.acquire()
            self._making = False
            if piece:
                self._keep(piece)
            else:
                self._ended = ended
            self._changed.notify_all()

    def _next(self) -> bytes:
        if self._make is None:
            self._make = self._prepare()
            self._stream = self._make(0)
        return next(self._stream)

    def _keep(self, piece: bytes) -> None:
        if len(self._kept) == KEPT:
            self._kept.popleft()
            self._first += 1
            self._wants = {reader: number for reader, number in self._wants.items() if number >= self._first}
        self._kept.append(piece)
