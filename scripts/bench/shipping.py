#!/usr/bin/env python3
"""What it costs to ship a finished cache to other hosts, as ratios to what a user would do instead, in one run.

    PYTHONPATH=. scripts/bench/shipping.py [--receivers 1 3] [--rounds 5] [--files 20000] [--per-entry 8] [--folder F]

Two caches: `many` files of 131 MiB together, and `one` of 1 GiB; each to one receiver and to three at once, all on
this host, whose cores sender and receivers share. The ways run in turn, A B C A B C, and medians are compared. Prints
a table and, last, one line of JSON. Exits 1 when rayprep takes more than twice what tar does. On a disk with ext4, a
way that comes after the removal of another's thousands of files is slower for it; /dev/shm has no such memory.

    tar      GNU tar, one for each receiver, over TCP on the loopback to GNU tar; then sha256sum -c of every file
    rsync    rsync -a from folder to folder, one for each receiver, without a hash; where rsync is installed
    tcp      rayprep's `pack`, once, over TCP on the loopback to rayprep's `receive` on each side, without Ray
    rayprep  as a fleet does: `pack`, once for receivers that ask at once, over Ray's object plane, between real Ray
             nodes

The split of rayprep's time, in seconds; of several processes the slowest, part by part. Both sides work at once, so
the parts are more than the whole:

    pack     the sender's CPU: lists, reads, writes the stream
    move     a receiver's wait for the next bytes
    hash     a side's CPU for SHA-256; each file is hashed where it leaves and where it arrives
    unpack   a receiver looks at what is there, takes the stream apart, writes
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

import psutil
from finished_cache import CACHE, MIB, FinishedCache, make_cache
from ray_hosts import over_ray, ray_hosts
from shipping_sides import PARTS, Split, Stopwatch, receive, send

from rayprep.fleet.handles import Handle

BOUND = 2.0
BUFFER = 1 * MIB
PROCESSES = multiprocessing.get_context("fork")
"""A host's own process has rayprep imported long before the first byte arrives."""


class Stream(io.RawIOBase):
    """Reads from one connection, or writes to several, and knows how long that took."""

    def __init__(self, *ends: socket.socket) -> None:
        self.ends, self.moving = ends, Stopwatch()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io has it
        return int(self.moving(lambda: self.ends[0].recv_into(buffer)))

    def write(self, data: Any) -> int:  # noqa: ANN401 - as io has it
        for end in self.ends:
            self.moving(partial(end.sendall, data))
        return len(data)

    def close(self) -> None:
        for end in self.ends:
            end.close()


Side = Callable[[Stream], Split]


def over_tcp(sender: Side, receivers: Sequence[Side]) -> list[Split]:
    """The transport: runs each side in a process of its own, the sender with a stream to all, and gives what each gave.

    Another transport is another function of this form.
    """
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in receivers]
    sides = [lambda: sender(Stream(*(socket.create_connection(server.getsockname()) for server in servers)))]
    for receiver, server in zip(receivers, servers, strict=True):
        sides.append(partial(_accepted, receiver, server))
    results = PROCESSES.SimpleQueue()
    processes = [PROCESSES.Process(target=lambda side=side: results.put(side())) for side in sides]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("rayprep failed")
    return [results.get() for _ in processes]


def _accepted(receiver: Side, server: socket.socket) -> Split:
    return receiver(Stream(server.accept()[0]))


def send_once(cache: FinishedCache, stream: Stream) -> Split:
    with io.BufferedWriter(stream, BUFFER) as out:
        return send(cache, out)


def take(cache: FinishedCache, target: Path, stream: Stream) -> Split:
    return receive(cache, target, io.BufferedReader(stream, BUFFER), stream.moving)


def by_tcp(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    return slowest(over_tcp(partial(send_once, cache), [partial(take, cache, target) for target in targets]))


def slowest(splits: Sequence[Split]) -> Split:
    return {part: max(split.get(part, 0.0) for split in splits) for part in PARTS}


def by_tar(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    processes = []
    for target in targets:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours, theirs = socket.create_connection(server.getsockname()), server.accept()[0]
        with ours, theirs:
            processes.append(
                subprocess.Popen(["tar", "c", "-C", str(cache.layout.profiles), CACHE], stdout=ours.fileno())
            )
            take = ["sh", "-c", 'tar x && sha256sum --quiet -c "$1"', "sh", str(cache.sums)]
            processes.append(subprocess.Popen(take, stdin=theirs.fileno(), cwd=target))
    return _ended(processes)


def by_rsync(cache: FinishedCache, targets: Sequence[Path]) -> Split:
    source = str(cache.layout.cache(CACHE))
    return _ended([subprocess.Popen(["rsync", "-a", source, f"{target}/"]) for target in targets])


def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> Split:
    for process in processes:
        if process.wait():
            sys.exit(f"{process.args!r} ended with {process.returncode}")
    return {}


def measure(
    cache: FinishedCache, receivers: int, rounds: int, folder: Path, hosts: Sequence[Handle]
) -> dict[str, object]:
    ways: dict[str, Callable[[FinishedCache, Sequence[Path]], Split]] = {
        "tar": by_tar,
        "rsync": by_rsync,
        "tcp": by_tcp,
        "rayprep": lambda cache, targets: slowest(over_ray(hosts, cache, targets)),
    }
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
    """Of all children, and of theirs: those that have ended, and Ray's, which go on."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return usage.ru_utime + usage.ru_stime + sum(times.user + times.system for times in living)


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
    print("$", *sys.argv)
    print(f"sender and receivers on one machine of {os.cpu_count()} cores", flush=True)
    shapes = {"many": (options.files, 131 * MIB // options.files, options.per_entry), "one": (1, 1024 * MIB, 1)}
    with tempfile.TemporaryDirectory(prefix="rayprep-bench-", dir=options.folder) as base:
        folder = Path(base)
        caches = [make_cache(folder, name, *shapes[name]) for name in options.caches]
        cases = [(cache, count) for cache in caches for count in options.receivers]
        with ray_hosts(1 + max(options.receivers)) as hosts:
            rows = [measure(cache, count, options.rounds, folder, hosts) for cache, count in cases]
    print(json.dumps({"files": options.files, "per_entry": options.per_entry, "rounds": options.rounds, "rows": rows}))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
