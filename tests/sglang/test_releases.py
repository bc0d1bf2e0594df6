"""Which release has what."""

import pytest

from rayprep.sglang.releases import KNOWN, NEWEST, READ, Since, since, warning_of_release


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("0.5.16", False),
        ("0.5.17", True),
        ("0.5.17rc1", True),
        ("v0.5.18+cu130", True),
        ("0.6", True),
        ("0.5.9", False),
    ],
)
def test_a_release_has_what_came_with_it_or_before(version: str, *, has: bool) -> None:
    assert since(version, "0.5.17") is has


def test_where_no_version_is_known_it_is_the_one_that_was_read() -> None:
    assert since(None, READ)
    assert not since(None, KNOWN[1])


@pytest.mark.parametrize("fact", Since)
def test_each_fact_has_a_release_that_is_known(fact: Since) -> None:
    assert fact.value in KNOWN
    assert since(NEWEST, fact), "what is newer than all is taken for the newest"
    assert since("0.9.0", fact)


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        (None, False),
        (READ, False),
        (NEWEST, False),
        ("0.5.23.post1", False),
        ("0.5.24", True),
        ("1.0", True),
        ("x", False),
    ],
)
def test_only_a_newer_one_is_worth_a_warning(version: str | None, *, warned: bool) -> None:
    assert (warning_of_release(version) is not None) is warned
