#!/usr/bin/env python3
"""How much the commands that only look cost, as ratios to what a user would do instead, in one run.

    scripts/bench/cli.py [--files 100000] [--rounds 7]

The two sides of each ratio run in turn, A B A B, and the medians of whole processes are compared. Prints a table
and, last, one line of JSON. Exits 1 when a ratio or a peak of memory is over its bound.

    help      rayprep --help                     to  python -c "import typer"                  at most 3
    inspect   rayprep inspect over N files       to  a bare os.scandir and stat loop over them   at most 2
    noop      rayprep ensure with nothing to do  to  rayprep inspect, over the same N files      at most 2
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rayprep.model.caches import CacheName
from rayprep.model.plan import Action
from rayprep.model.spec import resolve
from rayprep.node import NodeRequest, Survey, take_survey
from rayprep.node.completion_writer import new_completion
from rayprep.store.completions import write_completion
from rayprep.store.scan import scan_cache

MEMORY_BOUND_MIB = 120
MODEL = ("--model", "tiny-dense", "--device", "cpu")
BARE_LOOP = """
import os, sys
def walk(folder):
    total = count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner = walk(entry.path)
                total, count = total + inner[0], count + inner[1]
            else:
                total, count = total + entry.stat(follow_symlinks=False).st_size, count + 1
    return total, count
print(walk(sys.argv[1]))
"""


@dataclass
class Side:
    """One command of a pair, with the seconds and the peak MiB of each of its runs."""

    command: list[str]
    seconds: list[float]
    peak_mib: float = 0.0

    def run(self) -> None:
        started = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.perf_counter() - started)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{self.command} ended with {process.returncode}")
        self.peak_mib = max(self.peak_mib, usage.ru_maxrss / 1024)


def compare(name: str, ours: list[str], theirs: list[str], bound: float, rounds: int) -> dict[str, object]:
    a, b = Side(ours, []), Side(theirs, [])
    for _ in range(rounds + 1):
        a.run()
        b.run()
    # The first round only warms the file system's cache.
    mine, other = statistics.median(a.seconds[1:]), statistics.median(b.seconds[1:])
    row = {
        "name": name,
        "ours_s": round(mine, 3),
        "theirs_s": round(other, 3),
        "ratio": round(mine / other, 2),
        "bound": bound,
        "peak_mib": round(a.peak_mib, 1),
    }
    row["ok"] = mine / other <= bound and a.peak_mib <= MEMORY_BOUND_MIB
    print("{name:8} {ours_s:7} s  {theirs_s:7} s  ratio {ratio:5} (bound {bound})  peak {peak_mib} MiB".format(**row))
    return row


def make_tree(root: Path, files: int) -> None:
    """`files` small files in folders of 100 under the TorchInductor cache."""
    for number in range(files):
        folder = root / "torchinductor" / f"{number // 100:05d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"c{number:08d}abcdefghijklmnopqrstuvwxyz234567abcdefgh.main.so").write_bytes(b"x" * 64)


def survey(profiles: Path, telemetry: Path) -> Survey:
    resolved = resolve({"model": "tiny-dense", "device": "cpu"})
    request = NodeRequest(resolved=resolved, run_id="bench", profiles_root=str(profiles), telemetry_root=str(telemetry))
    return take_survey(request, dict(os.environ))


def complete(profiles: Path, telemetry: Path) -> None:
    """Writes a completion that lists every file, so that the next `ensure` has nothing to do."""
    look = survey(profiles, telemetry)
    decision = next(each for each in look.plan.decisions if each.action is Action.BUILD)
    assert decision.work is not None
    files = scan_cache(profiles, CacheName.TORCHINDUCTOR).files
    listed = {path: (size, "sha256:" + "0" * 64) for path, size in files.items()}
    empty = new_completion(look, decision, "bench", "2026-01-01T00:00:00Z")
    write_completion(look.layout, empty.model_copy(update={"units": decision.work.units, "artifacts": listed}))
    assert not survey(profiles, telemetry).plan.needs_work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rayprep = [sys.executable, "-m", "rayprep"]
    with tempfile.TemporaryDirectory(prefix="rayprep-bench-") as base:
        profiles, telemetry = Path(base) / "profiles", Path(base) / "telemetry"
        make_tree(profiles, options.files)
        roots = ["--profiles-root", str(profiles)]
        inspect = [*rayprep, "inspect", "--json", *roots]
        noop = [*rayprep, "ensure", *MODEL, *roots, "--telemetry-root", str(telemetry)]
        loop = [sys.executable, "-c", BARE_LOOP, str(profiles)]
        rows = [
            compare("help", [*rayprep, "--help"], [sys.executable, "-c", "import typer"], 3, options.rounds),
            compare("inspect", inspect, loop, 2, options.rounds),
        ]
        # In a process of its own: what a command's parent has in memory counts as the command's peak.
        completer = multiprocessing.Process(target=complete, args=(profiles, telemetry))
        completer.start()
        completer.join()
        rows.append(compare("noop", noop, inspect, 2, options.rounds))
    print(json.dumps({"files": options.files, "rounds": options.rounds, "rows": rows}))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
