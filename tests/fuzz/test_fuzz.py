"""A short fuzz of every file that is read, the same each time; `python -m tests.fuzz` is the long one."""

from pathlib import Path

import pytest

from tests.fuzz.run import Tally, damaged, fuzz, fuzz_names, fuzz_target
from tests.fuzz.target import Finding, Target
from tests.fuzz.targets.everything import all_targets

SEED = 15
MUTATIONS = 60
"""A share of which each target gets."""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return all_targets(tmp_path_factory.mktemp("fuzz"))


def assert_nothing_found(tallies: list[Tally]) -> None:
    found = [found for tally in tallies for found in tally.found]
    assert [(each.target, each.mutation, each.why, each.data[:200]) for each in found] == []


def test_every_reader_refuses_or_reads_what_is_damaged(targets: list[Target]) -> None:
    tallies = [fuzz_target(target, SEED, max(10, int(MUTATIONS * target.share))) for target in targets]
    assert_nothing_found(tallies)
    assert all(tally.outcomes.total() for tally in tallies)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])  # five and eight bits share no divisor
def test_no_bit_of_a_completions_names_makes_it_valid(targets: list[Target], step: int) -> None:
    tallies = [tally for target in targets for tally in fuzz_names(target, step)]
    assert_nothing_found(tallies)
    assert len(tallies) == 6, "of three stages, in two formats"
    assert all(tally.outcomes.total() > 4000 // step for tally in tallies)


def test_a_seed_gives_the_same_mutations() -> None:
    target = Target("numbers", b'{"a": 1, "b": [2]}', lambda data: str(len(data)), "18")
    assert list(damaged(target, 1, 50)) == list(damaged(target, 1, 50))
    assert list(damaged(target, 1, 50)) != list(damaged(target, 2, 50))


def test_what_must_not_be_is_found() -> None:
    def trace(_: bytes) -> str:
        raise KeyError("x")

    def wrong(_: bytes) -> str:
        raise Finding("it is not so")

    for read, outcome in ((trace, "trace"), (wrong, "wrong")):
        tally = fuzz(Target("bad", b"{}", read, "read"), [("none", b"{}")])
        assert (tally.outcomes, len(tally.found)) == ({outcome: 1}, 1)
    same = fuzz(Target("same", b"{}", lambda _: "valid", "valid"), [("none", b"{}")], flips=True)
    assert len(same.found) == 1


def test_a_read_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.run.LIMIT_S", 0.05)

    def hang(_: bytes) -> str:
        while True:
            Path("/").exists()

    tally = fuzz(Target("endless", b"{}", hang, "read"), [("none", b"{}")])
    assert tally.outcomes == {"hang": 1}
