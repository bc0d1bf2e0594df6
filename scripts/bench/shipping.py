#!/usr/bin/env python3
"""What it costs to ship a finished cache to other hosts, as ratios to what a user would do instead, in one run.

    scripts/bench/shipping.py [--receivers 1 3] [--rounds 5] [--files 20000] [--per-entry 8] [--folder /tmp]

Two caches: `many` files of 131 MiB together, and `one` of 1 GiB; each to one receiver and to three at once, all on
this host. The ways run in turn, A B C A B C, and medians are compared. Prints a table and, last, one line of JSON.
Exits 1 when shipping takes more than twice what tar does.

    tar      GNU tar, one for each receiver, over TCP on the loopback to GNU tar; then sha256sum -c of every file
    rsync    rsync -a from folder to folder, one for each receiver, without a hash; where rsync is installed
    rayprep  pack once, over TCP on the loopback, to `receive` on each side

The split of rayprep's time, in seconds; of several receivers the slowest, part by part:

    pack     lists, reads and hashes, without the time that the stream made it wait
    wait     a receiver's, for the next bytes
    unpack   looks at what is there, hashes, writes
    sync     puts the files on the disk, which the other ways leave to the kernel
    place    renames, writes the completion
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finished_cache import CACHE, MIB, FinishedCache, make_cache

from rayprep.host import unpack
from rayprep.host.completions import read_completions
from rayprep.host.layout import Layout
from rayprep.host.pack import pack

BOUND = 2.0
BUFFER = 1 * MIB
PARTS = ("pack", "wait", "unpack", "sync", "place")
PROCESSES = multiprocessing.get_context("fork")
"""A host's own process has rayprep imported long before the first byte arrives."""

Split = dict[str, float]


class Stream(io.RawIOBase):
    """Reads from one connection, or writes to several, and knows how long that took."""

    def __init__(self, *ends: socket.socket) -> None:
        self.ends, self.seconds, self.last = ends, 0.0, time.perf_counter()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io has it
        return self._timed(lambda: self.ends[0].recv_into(buffer))

    def write(self, data: Any) -> int:  # noqa: ANN401 - as io has it
        for end in self.ends:
            self._timed(partial(end.sendall, data))
        return len(data)

    def close(self) -> None:
        for end in self.ends:
            end.close()

    def _timed(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - the work's own
        started = time.perf_counter()
        done = work()
        self.last = time.perf_counter()
        self.seconds += self.last - started
        return done


Side = Callable[[Stream], Split]


def over_tcp(sender: Side, receivers: Sequence[Side]) -> list[Split]:
    """The transport: runs each side in a process of its own, the sender with a stream to all, and gives what each gave.

    Another transport is another function of this form.
    """
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in receivers]
    sides = [lambda: sender(Stream(*(socket.create_connection(server.getsockname()) for server in servers)))]
    for receiver, server in zip(receivers, servers, strict=True):
        sides.append(lambda receiver=receiver, server=server: receiver(Stream(server.accept()[0])))
    results = PROCESSES.SimpleQueue()
    processes = [PROCESSES.Process(target=lambda side=side: results.put(side())) for side in sides]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("rayprep failed")
    return [results.get() for _ in processes]


def send(cache: FinishedCache, stream: Stream) -> Split:
    started = time.perf_counter()
    with io.BufferedWriter(stream, BUFFER) as out:
        pack(cache.layout, [cache.completion], out)
    return {"pack": time.perf_counter() - started - stream.seconds}


def receive(cache: FinishedCache, target: Path, stream: Stream) -> Split:
    syncing, sync = [0.0], unpack.sync

    def timed_sync(folder: Path) -> None:
        began = time.perf_counter()
        sync(folder)
        syncing[0] = time.perf_counter() - began

    unpack.sync = timed_sync
    layout = Layout(target, target.parent / "telemetry")
    started = time.perf_counter()
    source = io.BufferedReader(stream, BUFFER)
    unpack.receive(layout, source, cache.completion.signature, unpack.Receipt(run_id="bench"))
    ended = time.perf_counter()
    assert read_completions(layout, cache.completion.stage)[0] == [cache.completion]
    return {
        "wait": stream.seconds,
        "unpack": stream.last - started - stream.seconds,
        "sync": syncing[0],
        "place": ended - stream.last - syncing[0],
    }


def by_rayprep(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    splits = over_tcp(partial(send, cache), [partial(receive, cache, target) for target in targets])
    return {part: max(split.get(part, 0.0) for split in splits) for part in PARTS}


def by_tar(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    processes = []
    for target in targets:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours, theirs = socket.create_connection(server.getsockname()), server.accept()[0]
        with ours, theirs:
            processes.append(subprocess.Popen(["tar", "c", "-C", str(cache.layout.profiles), CACHE], stdout=ours))
            take = ["sh", "-c", 'tar x && sha256sum --quiet -c "$1"', "sh", str(cache.sums)]
            processes.append(subprocess.Popen(take, stdin=theirs, cwd=target))
    return _ended(processes)


def by_rsync(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    source = str(cache.layout.cache(CACHE))
    return _ended([subprocess.Popen(["rsync", "-a", source, f"{target}/"]) for target in targets])


def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> Split:
    for process in processes:
        if process.wait():
            sys.exit(f"{process.args} ended with {process.returncode}")
    return {}


def measure(cache: FinishedCache, receivers: int, rounds: int, folder: Path) -> dict[str, object]:
    ways = {"tar": by_tar, "rsync": by_rsync, "rayprep": by_rayprep}
    if not shutil.which("rsync"):
        del ways["rsync"]
    runs: dict[str, list[Split]] = {way: [] for way in ways}
    for way in [*ways] * rounds:
        targets = [folder / f"to-{number}" / "profiles" for number in range(receivers)]
        for target in targets:
            target.mkdir(parents=True)
        os.sync()  # so that none writes out what another has left
        started, cpu = time.perf_counter(), cpu_seconds()
        split = ways[way](cache, targets)
        runs[way].append({"all": time.perf_counter() - started, "cpu": cpu_seconds() - cpu, **split})
        for target in targets:
            shutil.rmtree(target.parent)
    return row(cache.name, receivers, {way: medians(found) for way, found in runs.items()})


def cpu_seconds() -> float:
    """Of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def medians(runs: Sequence[Split]) -> Split:
    return {part: round(statistics.median(run[part] for run in runs), 3) for part in runs[0]}


def row(name: str, receivers: int, seconds: dict[str, Split]) -> dict[str, object]:
    ratios = {way: round(seconds["rayprep"]["all"] / split["all"], 2) for way, split in seconds.items()}
    for way, split in seconds.items():
        parts = "  ".join(f"{part} {split[part]:.2f}" for part in PARTS if part in split)
        shown = parts or f"ratio {ratios[way]}" + f" (bound {BOUND})" * (way == "tar")
        print(f"{name:4} to {receivers}  {way:7} {split['all']:6.2f} s  cpu {split['cpu']:6.2f} s  {shown}", flush=True)
    return {"name": name, "receivers": receivers, "seconds": seconds, "ratios": ratios, "ok": ratios["tar"] <= BOUND}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caches", nargs="+", choices=["many", "one"], default=["many", "one"])
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--per-entry", type=int, default=8)
    parser.add_argument("--folder", help="where the files go; one in memory leaves the disk out of it")
    options = parser.parse_args()
    shapes = {"many": (options.files, 131 * MIB // options.files, options.per_entry), "one": (1, 1024 * MIB, 1)}
    with tempfile.TemporaryDirectory(prefix="rayprep-bench-", dir=options.folder) as base:
        folder = Path(base)
        caches = [make_cache(folder, name, *shapes[name]) for name in options.caches]
        rows = [measure(cache, count, options.rounds, folder) for cache in caches for count in options.receivers]
    print(json.dumps({"files": options.files, "per_entry": options.per_entry, "rounds": options.rounds, "rows": rows}))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
