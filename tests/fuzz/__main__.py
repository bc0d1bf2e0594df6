"""`python -m tests.fuzz --mutations 20000 --seed 1 --log FILE`: damages each file that rayprep reads, and reads it.

Ends with status 1 where a reader shows a trace, takes what it must not, or does not come to an end. The inputs of
what it found go to the folder of `--keep`.
"""

import argparse
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rayprep.base.records import utc_now
from rayprep.host.group_access import set_umask
from tests.fuzz.run import Tally, fuzz_names, fuzz_target, fuzz_values
from tests.fuzz.targets.everything import all_targets

REPOSITORY = Path(__file__).parents[2]
_MEMORY = 2 << 30
"""Bytes of address space over what is taken at the start."""


def main() -> int:
    """Fuzz all targets, or those whose names hold a word."""
    arguments = _arguments()
    set_umask()
    with tempfile.TemporaryDirectory() as folder:
        targets = [target for target in all_targets(Path(folder)) if arguments.only in target.name]
        _bound_memory()
        with arguments.log.open("w", encoding="utf-8") as log:

            def say(line: str) -> None:
                print(line, flush=True)
                print(line, file=log, flush=True)

            _say_head(say)
            started, share = time.perf_counter(), arguments.mutations / sum(target.share for target in targets)
            tallies: list[Tally] = []
            for target in targets:
                tallies.append(fuzz_target(target, arguments.seed, 1 + int(share * target.share)))
                tallies += [] if arguments.quick else [*fuzz_names(target), *fuzz_values(target)]
                for tally in (tally for tally in tallies if tally.target.startswith(target.name)):
                    say(tally.line)
            _say_end(say, tallies, time.perf_counter() - started)
    _keep(tallies, arguments.keep)
    return 1 if any(tally.found for tally in tallies) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="leave out every bit of names, and every value")
    parser.add_argument("--only", default="", help="a word in the names of the targets")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"))
    parser.add_argument("--keep", type=Path, help="a folder for the inputs of what was found")
    return parser.parse_args()


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _say_head(say: Callable[[str], None]) -> None:
    say(f"# python -m tests.fuzz {shlex.join(sys.argv[1:])}")
    changed = " with changes" if _git("status", "--porcelain", "--", "rayprep", "tests/fuzz/*.py") else ""
    commit, version = f"{_git('rev-parse', 'HEAD')}{changed}", sys.version.split()[0]
    say(f"# commit {commit}, Python {version}, {utc_now()}")
    say(f"# limits: 5 s for one read, {_MEMORY >> 30} GiB of memory over what is taken at the start")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _say_end(say: Callable[[str], None], tallies: list[Tally], took_s: float) -> None:
    for found in (found for tally in tallies for found in tally.found[:20]):
        say(f"FINDING {found.target}, {found.mutation}: {found.why}")
    slowest = max(tallies, key=lambda tally: tally.slowest_s)
    flips = sum(tally.outcomes.total() for tally in tallies if tally.target.endswith("(names)"))
    values = sum(tally.outcomes.total() for tally in tallies if tally.target.endswith("(values)"))
    total = sum(tally.outcomes.total() for tally in tallies)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    say(
        f"{total - flips - values} mutations, {flips} bits of names and {values} values in {took_s:.0f} s, "
        f"at most {peak} MiB: "
        f"{sum(len(tally.found) for tally in tallies)} findings; "
        f"slowest read {slowest.slowest_s:.3f} s ({slowest.target}, {slowest.slowest})"
    )


def _keep(tallies: list[Tally], folder: Path | None) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(found for tally in tallies for found in tally.found):
        (folder / f"{number}-{found.target.replace(' ', '_').replace('/', '_')}").write_bytes(found.data)


if __name__ == "__main__":
    sys.exit(main())
