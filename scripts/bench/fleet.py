#!/usr/bin/env python3
"""What a fleet of N hosts of one kind costs beside one host, and beside the loop that a user would write, in one run.

    PYTHONPATH=. scripts/bench/fleet.py [--hosts 1 2 4 8] [--rounds 3] [--compile-s 1.0] [--folder /tmp]

The hosts are real Ray nodes of this machine, each with roots, facts and a stand-in SGLang of its own. The stand-in
compiles what it does not find: a program is run for each file, which notes that it was run and takes `--compile-s`.
That only waits, as each real host has cores of its own, so the loop loses nothing by sharing this machine's; what
shares them are the fleet's own processes. Prints tables and, last, one line of JSON. Exits 1 when a fleet of any size
compiles more than a fleet of one.

    fleet     rayprep ensure --cluster on N hosts with empty caches, to the end of the command
    in turn   rayprep ensure on each of N hosts, one after another: the sum
    at once   the same with each host at its own, all together: the slowest of them, timed alone

The parts of a fleet's time, from the command's start until the last host has done it:

    agents    Python and Ray's join, the coordinator, and an agent's process on each host
    looked    each host has looked at its caches, and the groups are formed
    built     one host has compiled, and closed its stages
    received  the others have what it built, checked and in place
    proved    a real server has started on every host, and compiled nothing
    end       the result is written, and the agents are gone
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from tests.fleet.fleet import HIDDEN, STAND_IN, Fleet, Node, fleet_of
from tests.host.test_ports import free_port

PARTS = ("agents", "looked", "built", "received", "proved", "end")
COMPILER = """#!/bin/sh
echo "$1" >> {count}
sleep {seconds}
"""
Marks = dict[str, float]


class Row(TypedDict):
    """What is told of one size of fleet."""

    hosts: int
    compiled: int
    loop_compiled: int
    marks: Marks
    in_turn_s: float
    at_once_s: float
    to_in_turn: float
    to_at_once: float


@dataclass(frozen=True)
class Compiler:
    """The program that stands in for nvcc on all hosts, and the file in which it notes each run."""

    program: Path
    count: Path

    @property
    def runs(self) -> int:
        return len(self.count.read_text(encoding="utf-8").splitlines()) if self.count.exists() else 0


def make_compiler(base: Path, seconds: float) -> Compiler:
    compiler = Compiler(base / "nvcc", base / "compiled")
    compiler.program.write_text(COMPILER.format(count=compiler.count, seconds=seconds), encoding="utf-8")
    compiler.program.chmod(0o755)
    return compiler


def empty(nodes: list[Node], compiler: Compiler) -> None:
    compiler.count.unlink(missing_ok=True)
    for node in nodes:
        shutil.rmtree(node.layout.profiles)
        node.layout.profiles.mkdir()


def by_fleet(fleet: Fleet, nodes: list[Node], compiler: Compiler, run_id: str) -> tuple[Marks, int]:
    """When the last host had done each part, in seconds from the command's start; and how often was compiled."""
    empty(nodes, compiler)
    named = ",".join(node.name for node in nodes)
    began, started = time.time(), time.perf_counter()
    run = fleet.start(*STAND_IN, "--json", "--nodes", named, "--warmup-port", str(free_port()), run_id=run_id)
    marks: Marks = {}
    assert run.stdout is not None
    for line in run.stdout:
        if part := _part(line):
            marks[part] = time.perf_counter() - started
    if run.wait():
        sys.exit(f"the fleet of {len(nodes)} ended with {run.returncode}: {run.stderr and run.stderr.read()}")
    marks["end"] = time.perf_counter() - started
    marks["agents"] = _last_agent(began) - began
    marks.setdefault("received", marks["built"])
    return {part: round(marks[part], 2) for part in PARTS}, compiler.runs


def _part(line: str) -> str | None:
    """Which part this line of the run says the end of. The driver hears of it a quarter of a second later at most."""
    said = json.loads(line.removeprefix("OPTIMIZE_JSON ")) if line.startswith("OPTIMIZE_JSON ") else {}
    if said.get("name") == "ensure" and str(said.get("hint", "")).startswith("group-"):
        return "looked"
    ended = said.get("name") if said.get("phase") == "end" else None
    built = ended == "serve" and said.get("status") == "ok"
    return "built" if built else {"receive": "received", "verify": "proved"}.get(str(ended))


def _last_agent(since: float) -> float:
    """When the last agent's process was there, by Ray's own account, in seconds since the epoch."""
    from ray._private.state import actors

    agents = [each for each in actors().values() if each["ActorClassName"] == "HostAgent"]
    starts: list[float] = [each["StartTime"] / 1000 for each in agents]
    return max(start for start in starts if start > since)


def by_itself(node: Node) -> float:
    """One turn of the loop, in seconds."""
    inherited = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    asked = ("ensure", "--model", "tiny-dense", *STAND_IN, "--warmup-port", str(free_port()))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "rayprep", *asked],
        env={**inherited, **node.env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{node.name} by itself ended with {done.returncode}: {done.stdout}{done.stderr}")
    return time.perf_counter() - started


def measure(base: Path, sizes: list[int], rounds: int, compile_s: float) -> list[Row]:
    import ray

    compiler = make_compiler(base, compile_s)
    os.environ["FAKE_COMPILER"] = str(compiler.program)
    nodes = [Node(f"gpu-{number}", base / f"n{number}") for number in range(max(sizes))]
    fleets: dict[int, list[tuple[Marks, int]]] = {size: [] for size in sizes}
    loops: list[list[float]] = []
    loop_compiled = 0
    with fleet_of(base, *nodes) as fleet:
        ray.init(address=fleet.address, log_to_driver=False)
        by_fleet(fleet, nodes[:1], compiler, "warm-up")  # the coordinator, which stays, and the file system's cache
        for number in range(rounds):
            for size in sizes:
                fleets[size].append(by_fleet(fleet, nodes[:size], compiler, f"round-{number}-{size}"))
        ray.shutdown()
    for _ in range(rounds):
        empty(nodes, compiler)
        loops.append([by_itself(node) for node in nodes])
        loop_compiled = compiler.runs // len(nodes)
    return [row(size, fleets[size], [loop[:size] for loop in loops], loop_compiled) for size in sizes]


def row(size: int, fleet: list[tuple[Marks, int]], loops: list[list[float]], each_compiles: int) -> Row:
    marks = {part: round(statistics.median(found[part] for found, _ in fleet), 2) for part in PARTS}
    in_turn, at_once = statistics.median(map(sum, loops)), statistics.median(map(max, loops))
    return {
        "hosts": size,
        "compiled": max(count for _, count in fleet),
        "loop_compiled": each_compiles * size,
        "marks": marks,
        "in_turn_s": round(in_turn, 2),
        "at_once_s": round(at_once, 2),
        "to_in_turn": round(marks["end"] / in_turn, 2),
        "to_at_once": round(marks["end"] / at_once, 2),
    }


def show(rows: list[Row]) -> None:
    print("hosts  compiled: fleet  loop   fleet s  in turn s (ratio)  at once s (ratio)")
    for each in rows:
        print(
            "{hosts:5} {compiled:16} {loop_compiled:5} {end:9.1f} {in_turn_s:10.1f} ({to_in_turn:4.2f}) "
            "{at_once_s:11.1f} ({to_at_once:4.2f})".format(**each, end=each["marks"]["end"])
        )
    print("\nhosts  " + "  ".join(f"{part:>8}" for part in PARTS) + "   s from the start, the last host's")
    for each in rows:
        print(f"{each['hosts']:5}  " + "  ".join(f"{each['marks'][part]:8.1f}" for part in PARTS))


def explain(rows: list[Row]) -> dict[str, float]:
    """What each further host adds to each part, in seconds: from the fewest hosts to the most."""
    first, last = rows[0], rows[-1]
    more = last["hosts"] - first["hosts"]
    if not more:
        return {}
    grown = [(last["marks"][part] - first["marks"][part]) / more for part in PARTS]
    added = {part: round(now - before, 3) for part, now, before in zip(PARTS, grown, [0.0, *grown], strict=False)}
    parts = ", ".join(f"{part} {seconds:+.2f}" for part, seconds in added.items())
    print(f"\neach further host adds {grown[-1]:.2f} s: {parts}")
    return added


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile-s", type=float, default=1.0, help="of each file; the stand-in has 11")
    parser.add_argument("--folder", help="where the hosts' roots go")
    options = parser.parse_args()
    sizes = sorted(set(options.hosts))
    print("$", *sys.argv)
    print(f"{max(sizes)} simulated hosts on one machine of {os.cpu_count()} cores, which all their processes share")
    with tempfile.TemporaryDirectory(prefix="rayprep-bench-", dir=options.folder) as base:
        rows = measure(Path(base), sizes, options.rounds, options.compile_s)
    show(rows)
    added = explain(rows)
    ok = all(each["compiled"] == rows[0]["compiled"] for each in rows)
    print(json.dumps({"cores": os.cpu_count(), "rounds": options.rounds, "added_s": added, "rows": rows, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
