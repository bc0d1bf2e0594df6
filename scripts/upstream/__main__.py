"""`scripts/check-sglang VERSION`: what of rayprep does not hold with a release of SGLang, and what it then does."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from rayprep.base.errors import RayprepError
from rayprep.base.text import one_line
from rayprep.sglang.releases import warning_of_release
from scripts.upstream.contract import Contract
from scripts.upstream.contracts import CONTRACTS
from scripts.upstream.release import fetch_release

_DESCRIPTION = """Say what of rayprep does not hold with a release of SGLang, a line each, and what rayprep does then.

The wheels of the release, and of the flashinfer and DeepGEMM that it pins, are downloaded by pip (up to 110 MB) and
kept in $XDG_CACHE_HOME/rayprep/wheels or ~/.cache/rayprep/wheels. They are read, and neither installed nor run.
Exit status: 0 all holds, 1 something does not, 2 no such release, 3 it cannot be had here."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def concerned(version: str) -> list[Contract]:
    """Return the rows that a release should fulfil for rayprep to do all that it can."""
    return [row for row in CONTRACTS if row.has_begun(version) and not (row.replaced and row.is_over(version))]


def main(words: Sequence[str]) -> int:
    """Print a line for each row that does not hold. Returns the exit status."""
    parser = _Parser("check-sglang", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", metavar="VERSION", help="a release of SGLang, such as 0.5.23")
    version = parser.parse_args(words).version
    try:
        release = fetch_release(version)
        print(f"sglang {version} with {' and '.join(f'{name} {pin}' for name, pin in release.pins.items())}")
        asked = concerned(version)
        broken = [(contract, problem) for contract, problem in release.problems(asked) if problem]
        for contract, problem in broken:
            known = f" (known: until {contract.until})" if contract.until else ""
            print(one_line(f"{contract}: {problem}{known}: {contract.then}"))
    except RayprepError as error:
        print(f"check-sglang: error: {error.line}", file=sys.stderr)
        return error.exit_code
    if warning := warning_of_release(version):
        print(warning)
    print(f"{len(broken)} of {len(asked)} do not hold" if broken else f"all {len(asked)} hold")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
