"""The two sides of shipping a finished cache, each with how long its parts took."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

from finished_cache import FinishedCache

from rayprep.host.layout import Layout
from rayprep.store.completions import read_completions
from rayprep.store.package import pack, tar_stream, unpack
from rayprep.store.package.move_in import sync
from rayprep.store.package.tar_stream import Source

PARTS = ("pack", "move", "hash", "unpack", "sync", "place")

Split = dict[str, float]
"""Part -> seconds."""


class Stopwatch:
    """Adds up what several calls take."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.seconds, self.last = clock, 0.0, time.perf_counter()

    def __call__(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - the work's own
        started = self.clock()
        done = work()
        self.seconds += self.clock() - started
        self.last = time.perf_counter()
        return done


class _TimedDigest:
    """SHA-256 that knows what it took in each thread, in seconds of CPU: one process packs for several hosts."""

    taken = threading.local()

    def __init__(self, data: bytes = b"") -> None:
        self._digest = hashlib.sha256()
        self.update(data)

    def update(self, data: bytes | memoryview) -> None:
        started = time.thread_time()
        self._digest.update(data)
        self.taken.seconds += time.thread_time() - started

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def time_hashing() -> None:
    """Counts in this thread from now on."""
    _TimedDigest.taken.seconds = 0.0
    for module in (pack, tar_stream):
        vars(module)["hashlib"] = SimpleNamespace(sha256=_TimedDigest)


def hashing_s() -> float:
    return float(_TimedDigest.taken.seconds)


def send(cache: FinishedCache, out: BinaryIO) -> Split:
    """In seconds of CPU, for it waits for the stream in between."""
    time_hashing()
    started = time.thread_time()
    pack.pack(cache.layout, [cache.completion], out)
    hashing = hashing_s()
    return {"pack": time.thread_time() - started - hashing, "hash": hashing}


def receive(cache: FinishedCache, target: Path, stream: Source, moving: Stopwatch) -> Split:
    """`moving` knows how long the stream let it wait."""
    syncing = Stopwatch()
    layout = Layout(target, target.parent / "telemetry")
    time_hashing()
    started = time.perf_counter()
    with mock.patch.object(unpack, "sync", lambda folder: syncing(lambda: sync(folder))):
        unpack.receive(layout, stream, cache.completion.signature, unpack.Receipt(run_id="bench"))
    ended, hashing = time.perf_counter(), hashing_s()
    assert read_completions(layout, cache.completion.stage)[0] == [cache.completion]
    return {
        "move": moving.seconds,
        "hash": hashing,
        "unpack": moving.last - started - moving.seconds - hashing,
        "sync": syncing.seconds,
        "place": ended - moving.last - syncing.seconds,
    }
