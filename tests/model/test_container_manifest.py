"""The manifest: what is decided for it, and merging into one that other programs write to as well."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.base.records import Located
from rayprep.model.container_manifest import (
    POINTER,
    POINTER_ON_HOST,
    PORTS,
    PROGRAMS,
    Manifest,
    Surface,
    SurfaceStatus,
    has_snapshot,
    merge_snapshot,
    parse_pointer,
    parse_program,
    pointer_text,
    services,
    surfaces,
    warnings_of,
    with_programs,
)
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


@pytest.mark.parametrize("text", ["{}", '{"profile_cache": {}}', '{"profile_cache": {"start": null}}', "[]", "{", "3"])
def test_a_snapshot_is_missing_until_it_is_merged(text: str) -> None:
    assert not has_snapshot(text)
    assert has_snapshot(merge_snapshot("{}", "manifest.json", snapshot()))


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


def manifest(**changes: object) -> Manifest:
    """A whole one, of a container whose roots have other names on its host."""

    def located(name: str) -> dict[str, str]:
        return {"container_path": f"/telemetry{name}", "host_path": f"/home/me/telemetry{name}"}

    values: dict[str, object] = {
        "run_id": "container-run-1",
        "started_at": MOMENT,
        "manifest": located("/container_runs/container-run-1/container_run_meta.json"),
        "session_log": located("/logs/container-run-1.log"),
        "prep_result": located("/container_runs/container-run-1/prep_result.json"),
        "telemetry_root": located(""),
        "profiles_root": {"container_path": "/profiles", "host_path": "/home/me/caches"},
        "signature": signature(),
        "services": services(0),
        "telemetry_surfaces": surfaces({}),
    }
    return Manifest.model_validate({**values, **changes})


LIVE = Surface(status=SurfaceStatus.LIVE)


def test_what_waits_for_the_benchmarks_server_is_expected() -> None:
    found = surfaces(dict.fromkeys(PROGRAMS, LIVE))
    assert {name for name, each in found.items() if each.status is SurfaceStatus.EXPECTED} == {
        "sglang_metrics",
        "tracing",
    }
    assert warnings_of(found) == ()


@pytest.mark.parametrize("status", [SurfaceStatus.DEGRADED, SurfaceStatus.ABSENT])
def test_what_nobody_keeps_is_as_bad_as_its_keeper(status: SurfaceStatus) -> None:
    found = surfaces({**dict.fromkeys(PROGRAMS, LIVE), "jaeger": Surface(status=status, warning="why")})
    assert found["tracing"].status is status
    assert found["sglang_metrics"].status is SurfaceStatus.EXPECTED
    assert warnings_of(found) == ("jaeger: why", f"tracing: jaeger, which would keep it, is {status}")


def test_a_port_base_shifts_every_port() -> None:
    assert {name: each.port - 1000 for name, each in services(1000).items()} == PORTS
    assert services(1000)["prometheus"].url == "http://127.0.0.1:10090"


@pytest.mark.parametrize(
    "text", ["", "prometheus", "prometheus=", "prometheus=expected", "prometheus=absent", "other=live", "=live"]
)
def test_a_program_is_told_with_its_status_and_its_warning(text: str) -> None:
    assert parse_program("jaeger=absent:a: b") == ("jaeger", Surface(status=SurfaceStatus.ABSENT, warning="a: b"))
    with pytest.raises(BadRequest, match="NAME=STATUS:WARNING"):
        parse_program(text)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1)
)
def test_a_pointer_says_any_path(name: str) -> None:
    place = Located(container_path=f"/telemetry/{name}", host_path=f"/a b/{name}")
    read = parse_pointer(pointer_text(place))
    assert (read[POINTER], read[POINTER_ON_HOST]) == (place.container_path, place.host_path)


def test_half_a_pointer_is_none() -> None:
    assert parse_pointer("") == {}
    assert parse_pointer("# a comment\nA=\nB='half") == {}


def test_a_later_state_joins_what_others_have_written() -> None:
    text = json.dumps({"theirs": 1, "warnings": ["old"], "telemetry_surfaces": {"theirs": 2}})
    died = {"prometheus": Surface(status=SurfaceStatus.DEGRADED, warning="it has ended")}
    once = with_programs(text, "m.json", died, MOMENT)
    got = json.loads(once)
    assert (got["theirs"], got["telemetry_surfaces"]["theirs"], got["stopped_at"]) == (1, 2, MOMENT)
    assert got["telemetry_surfaces"]["sglang_metrics"]["status"] == "degraded"
    assert got["warnings"] == [
        "old",
        "prometheus: it has ended",
        "sglang_metrics: prometheus, which would keep it, is degraded",
    ]
    assert with_programs(once, "m.json", died, MOMENT) == once


def test_programs_of_what_is_no_manifest() -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        with_programs("[]", "m", {})
