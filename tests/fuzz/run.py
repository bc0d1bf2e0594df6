"""Reads damaged files one after another, each within limits of time and memory, and counts what comes of it."""

import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from types import FrameType

from rayprep.base.errors import RayprepError
from tests.fuzz.mutations import mutate, name_flips, other_values
from tests.fuzz.target import REFUSED, Finding, Target, require

LIMIT_S = 5.0
"""For one read."""


class _TooLong(BaseException):
    """The time for a read is over. No reader catches it."""


@dataclass(frozen=True)
class Found:
    """Something that must not be, with what it came of."""

    target: str
    mutation: str
    why: str
    data: bytes


@dataclass
class Tally:
    """What a target's mutations came to."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    total_s: float = 0.0

    @property
    def line(self) -> str:
        """For the log."""
        outcomes = " ".join(f"{word}={count}" for word, count in sorted(self.outcomes.items()))
        return (
            f"{self.target}: {self.outcomes.total()} mutations in {self.total_s:.1f} s: {outcomes}; "
            f"findings={len(self.found)}; slowest {self.slowest_s:.3f} s ({self.slowest})"
        )


@contextmanager
def _limit() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(target: Target, data: bytes) -> tuple[str, str]:
    """Reads one file. Returns what came of it, and what must not be or nothing."""
    try:
        with _limit():
            return target.read(data), ""
    except RayprepError as error:
        return REFUSED, _wrong_line(error)
    except Finding as error:
        return "wrong", str(error)
    except _TooLong:
        return "hang", f"took more than {LIMIT_S} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody has promised it
        return "trace", f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]!r}"


def _wrong_line(error: RayprepError) -> str:
    line = error.line
    return "" if line.isprintable() and line.encode(errors="surrogatepass") else f"its line does not print: {line!r}"


def fuzz(target: Target, mutations: Iterable[tuple[str, bytes]], *, flips: bool = False) -> Tally:
    """Reads each mutation.

    Args:
        flips: none of them may read as the good one does.
    """
    tally = Tally(f"{target.name} (names)" if flips else target.name)
    for name, data in mutations:
        started = time.perf_counter()
        outcome, why = outcome_of(target, data)
        if outcome == "hang":  # once more: the machine is shared
            started = time.perf_counter()
            outcome, why = outcome_of(target, data)
        took = time.perf_counter() - started
        if flips and outcome == target.expected:
            outcome, why = "wrong", f"reads as {target.expected}"
        tally.outcomes[outcome] += 1
        tally.total_s += took
        if took > tally.slowest_s:
            tally.slowest_s, tally.slowest = took, name
        if why:
            tally.found.append(Found(tally.target, name, why, data))
    return tally


def damaged(target: Target, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """So many mutations, the same ones for a seed, whatever other targets there are."""
    for number in range(count):
        name, data = mutate(target.good, Random(f"{seed} {target.name} {number}"))
        yield f"{name} #{number}", data


def fuzz_target(target: Target, seed: int, count: int) -> Tally:
    """Reads the good file, and `count` mutations of it.

    Raises:
        Finding: the good file does not read as it must.
    """
    outcome, why = outcome_of(target, target.good)
    require(outcome == target.expected, f"{target.name}: the good file reads as {outcome}: {why}")
    return fuzz(target, damaged(target, seed, count))


def fuzz_names(target: Target, step: int = 1) -> list[Tally]:
    """Every bit of its names, or each `step`-th, where that is asked for."""
    if target.read_flipped is None:
        return []
    flipped = islice(name_flips(target.good), 0, None, step)
    return [fuzz(replace(target, read=target.read_flipped), flipped, flips=True)]


def fuzz_values(target: Target) -> list[Tally]:
    """Every one of its values, where that is asked for."""
    named = replace(target, name=f"{target.name} (values)")
    step = target.every_value
    return [fuzz(named, islice(other_values(target.good), 0, None, step))] if step else []
