"""One stream for several readers: each of its pieces is made once, by whichever reader is the first to need it.

The readers keep together: a few pieces are kept, and whoever is ahead waits for the others, a while. Who still lags
then has the rest made for itself alone, so that a slow reader, or a dead one, costs the others that while and no more.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator

KEPT = 4
"""So many pieces of a stream are kept."""
PATIENCE_S = 1.0

Make = Callable[[], Iterator[bytes]]
"""Begins the stream anew, which gives the same pieces each time, and none that is empty."""


class SharedStreams:
    """The streams that are being read now, by what they are of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[Hashable, _SharedStream] = {}

    def read(self, what: Hashable, make: Make) -> Iterator[bytes]:
        """Reads from the first piece on, together with those that began a moment ago. Raises what the stream does."""
        reader = object()
        with self._lock:
            stream = self._streams.get(what)
            if stream is None or not stream.join(reader):
                stream = self._streams[what] = _SharedStream(make)
                stream.join(reader)
        try:
            yield from stream.pieces(reader)
        finally:
            with self._lock:
                if stream.leave(reader) and self._streams.get(what) is stream:
                    del self._streams[what]


class _SharedStream:
    def __init__(self, make: Make) -> None:
        self._make, self._stream = make, make()
        self._kept: deque[bytes] = deque()
        self._first = 0
        """The number of the oldest piece that is kept."""
        self._wants: dict[object, int] = {}
        """Reader -> the number of the piece that it wants next. Who has lagged too far is none of them."""
        self._ended: Exception | None = None
        """By what: StopIteration, or an error that every reader is to have."""
        self._changed = threading.Condition()

    def join(self, reader: object) -> bool:
        """Whether the first piece is still there for it."""
        with self._changed:
            if not self._first:
                self._wants[reader] = 0
            return not self._first

    def leave(self, reader: object) -> bool:
        """Whether it was the last."""
        with self._changed:
            self._wants.pop(reader, None)
            self._changed.notify_all()
            return not self._wants

    def pieces(self, reader: object) -> Iterator[bytes]:
        for number in itertools.count():
            piece = self._piece(reader, number)
            if piece is None:
                yield from itertools.islice(self._make(), number, None)
            if not piece:
                return
            yield piece

    def _piece(self, reader: object, number: int) -> bytes | None:
        """The piece of that number, nothing at the end, or None where it is kept no more."""
        with self._changed:
            if reader in self._wants:
                self._wants[reader] = number
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._made(number) or self._may_go_on(), PATIENCE_S)
            if not self._made(number) and self._ended is None:
                self._make_one()
            if number < self._first:
                return None
            if self._made(number):
                return self._kept[number - self._first]
            if isinstance(self._ended, StopIteration):
                return b""
            assert self._ended is not None
            raise self._ended

    def _made(self, number: int) -> bool:
        return number < self._first + len(self._kept)

    def _may_go_on(self) -> bool:
        """Whether there is room for one more, or nobody wants the oldest any more."""
        return len(self._kept) < KEPT or self._first not in self._wants.values()

    def _make_one(self) -> None:
        try:
            piece = next(self._stream)
        except Exception as error:  # noqa: BLE001 - whoever reads has it
            self._ended = error
            return
        if len(self._kept) == KEPT:
            self._kept.popleft()
            self._first += 1
            self._wants = {reader: number for reader, number in self._wants.items() if number >= self._first}
        self._kept.append(piece)
