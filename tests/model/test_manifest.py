"""Merging the snapshot into a manifest that belongs to another program."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.errors import BadRequest
from rayprep.model.manifest import merge_snapshot
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot
from rayprep.model.stages import ANSWERS_FOR
from tests.model.samples import MOMENT, signature


def snapshot() -> ProfileSnapshot:
    cache = CacheSnapshot(exists=False, valid=False, path=".cache/x", signature=signature())
    return ProfileSnapshot.model_validate(
        {"partial": False, "profiles_root": "/profiles", "taken_at": MOMENT}
        | {name.value: cache for name in ANSWERS_FOR}
    )


def merged(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(merge_snapshot(text, "manifest.json", snapshot()))
    return loaded


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "profile_cache"), JSON))
def test_every_other_field_stays_as_it_was_and_in_its_order(manifest: dict[str, Any]) -> None:
    got = merged(json.dumps(manifest))
    assert list(got) == [*manifest, "profile_cache"]
    assert {key: got[key] for key in manifest} == manifest
    assert got["profile_cache"] == {"start": snapshot().model_dump(mode="json")}


def test_what_else_lies_in_profile_cache_stays_and_an_old_start_is_replaced() -> None:
    got = merged('{"profile_cache": {"end": 1, "start": {"old": true}}, "after": 2}')
    assert list(got) == ["profile_cache", "after"]
    assert got["profile_cache"]["end"] == 1
    assert got["profile_cache"]["start"]["schema_version"] == "1"
    assert "old" not in got["profile_cache"]["start"]


def test_merging_twice_is_merging_once() -> None:
    once = merge_snapshot('{"a": "ü"}', "manifest.json", snapshot())
    assert merge_snapshot(once, "manifest.json", snapshot()) == once
    assert "ü" in once, "for people to read"


def test_half_a_surrogate_pair_can_be_written_again() -> None:
    """Python's own json writes a file name's stray bytes so."""
    text = merge_snapshot('{"path": "/models/\\udcff"}', "manifest.json", snapshot())
    text.encode()
    assert json.loads(text)["path"] == "/models/\udcff"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        '{"profile_cache": null}',
        '{"profile_cache": []}',
        '{"a": 1} trailing',
        "[" * 100_000,
        '{"a":' * 990 + "1" + "}" * 990,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_manifest_is_one_line_that_names_the_file(text: str) -> None:
    try:
        merge_snapshot(text, "manifest.json", snapshot())
    except BadRequest as error:
        assert error.line.startswith("manifest manifest.json")
        assert len(error.line.splitlines()) == 1
        assert "left as it was" in error.line
    else:
        assert text.startswith('{"a":{"a":'), "only the deep one may be within what this Python can do"
