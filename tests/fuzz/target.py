"""One kind of file that is fuzzed: what a good one holds, and what reading a damaged one may come to."""

from collections.abc import Callable
from dataclasses import dataclass

REFUSED = "refused"


class Finding(Exception):
    """A reader took what it must not take, or said what is not so."""


@dataclass(frozen=True)
class Target:
    """A kind of file, below a temporary root of its own."""

    name: str
    good: bytes
    read: Callable[[bytes], str]
    """Puts the file in its place, reads it as rayprep does, and says in a word what came of it.

    Raises:
        Finding: what was read is not so.
        RayprepError: it was refused, as its reader promises. Any other error is a finding.
    """
    expected: str
    """What comes of the good one."""
    share: float = 1.0
    """How many mutations it gets, of those that are its turn: one that takes long is given fewer."""
    read_flipped: Callable[[bytes], str] | None = None
    """Reads it with one bit of its names turned, after which it must not read as `expected`. Null where all else of
    it may change, too."""

    every_value: int = 0
    """1 has each of its values replaced by each that may be a surprise, too; N one of N such mutations; 0 none."""


def require(holds: object, what: str) -> None:
    """Raise Finding where it does not hold."""
    if not holds:
        raise Finding(what)
