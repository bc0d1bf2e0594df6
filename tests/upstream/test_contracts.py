"""What rayprep names of SGLang and its kernel libraries, held against the wheels of three releases."""

from functools import lru_cache

import pytest

from rayprep.base.errors import HostUnfit
from scripts.upstream.__main__ import concerned
from scripts.upstream.contract import Contract
from scripts.upstream.contracts import CONTRACTS
from scripts.upstream.release import Release, fetch_release
from tests.needs import lacks

RELEASES = ("0.5.16", "0.5.20", "0.5.23")


@lru_cache(maxsize=1)  # what is read of one takes several hundred megabytes
def fetched(version: str) -> Release | str:
    """Return a release, or why it cannot be had: that is asked once."""
    try:
        return fetch_release(version)
    except HostUnfit as unfit:
        return unfit.line


def release_of(version: str) -> Release:
    release = fetched(version)
    return lacks(release) if isinstance(release, str) else release


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.id)
@pytest.mark.parametrize("version", RELEASES)
def test_a_release_has_what_is_said_of_it_and_nothing_else(version: str, contract: Contract) -> None:
    problem = contract.check.problem(release_of(version).wheels[contract.package])
    assert (problem == "") == contract.is_said_of(version), problem


@pytest.mark.parametrize("version", RELEASES)
def test_a_row_that_another_stands_for_is_not_asked_of_later_releases(version: str) -> None:
    asked = set(concerned(version))
    assert {row for row in CONTRACTS if row.is_said_of(version)} <= asked
    assert all(row.is_over(version) and not row.replaced for row in asked if not row.is_said_of(version))


def test_no_row_stands_twice() -> None:
    assert len({row.id for row in CONTRACTS}) == len(CONTRACTS)
