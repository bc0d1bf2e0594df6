"""What rayprep names of SGLang and its kernel libraries, held against the wheels of three releases."""

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.sglang.pins import PINS
from scripts.upstream.__main__ import concerned
from scripts.upstream.contracts import CONTRACTS
from scripts.upstream.release import Release, fetch_release
from tests.needs import lacks

RELEASES = ("0.5.16", "0.5.20", "0.5.23")


def release_of(version: str) -> Release:
    try:
        return fetch_release(version)
    except HostUnfit as unfit:
        lacks(unfit.line)


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_has_what_is_said_of_it_and_nothing_else(version: str) -> None:
    """All rows at once, so that no file is read and parsed again in another process."""
    release = release_of(version)
    assert release.pins == {name: PINS[version][name] for name in release.pins}
    problems = release.problems(CONTRACTS)
    wrong = [f"{row.id}: {why or 'it is there'}" for row, why in problems if (why == "") != row.is_said_of(version)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("version", RELEASES)
def test_a_row_that_another_stands_for_is_not_asked_of_later_releases(version: str) -> None:
    asked = set(concerned(version))
    assert {row for row in CONTRACTS if row.is_said_of(version)} <= asked
    assert all(row.is_over(version) and not row.replaced for row in asked if not row.is_said_of(version))


def test_no_row_stands_twice() -> None:
    assert len({row.id for row in CONTRACTS}) == len(CONTRACTS)
