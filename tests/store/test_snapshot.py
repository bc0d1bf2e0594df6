"""The snapshot of real caches: each reason for being invalid, and the contract's shape."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rayprep.base.records import read_tolerant, to_json, utc_from_timestamp
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.signature import Signature
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot
from rayprep.model.stages import ANSWERS_FOR, StageName
from rayprep.store.completions import write_completion
from rayprep.store.markers import Marker, write_marker
from rayprep.store.scan import hash_files
from rayprep.store.snapshot import Wanted, read_contents, take_snapshot, wrong_hashes
from tests.model.samples import DIGEST, MOMENT, completion, identity, signature
from tests.store.caches import ARTIFACTS, built, fill, layout_in

INDUCTOR = StageName.INDUCTOR
WANTED = Wanted("tiny-dense", DIGEST, 1)
MARKER = Marker(owner_pid=7, started_at=MOMENT, run_id="run-1", host="host-1")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = layout_in(tmp_path)
    layout.profiles.mkdir()
    return layout


def look(
    layout: Layout, wanted: Wanted | None = WANTED, now: Signature | None = None, deep: bool = False
) -> ProfileSnapshot:
    contents = read_contents(layout, wanted.slug if wanted else None, wanted.tp if wanted else None)
    return take_snapshot(layout, contents, now or signature(), wanted, deep)


def inductor(layout: Layout, **how: Any) -> CacheSnapshot:  # noqa: ANN401 - handed on
    return look(layout, **how).torchinductor


def verdict(cache: CacheSnapshot) -> tuple[bool, str | None]:
    return cache.valid, cache.reason


def test_an_empty_root_is_invalid_everywhere_and_is_left_empty(layout: Layout) -> None:
    snapshot = look(layout)
    for cache in ANSWERS_FOR:
        assert verdict(getattr(snapshot, cache.value)) == (False, "no_completion")
        assert not getattr(snapshot, cache.value).exists
    assert not snapshot.partial
    assert list(layout.profiles.iterdir()) == []


def test_what_a_completion_lists_and_is_there_is_valid(layout: Layout) -> None:
    built(layout)
    cache = inductor(layout)
    assert verdict(cache) == (True, None)
    assert (cache.exists, cache.partial, cache.partial_info) == (True, False, None)
    assert (cache.file_count, cache.size_bytes) == (2, 8), "the lock does not count"
    newest = max((layout.profiles / path).stat().st_mtime for path in ARTIFACTS)
    assert cache.latest_mtime_iso == utc_from_timestamp(newest)
    assert {each.path for each in cache.newest_files} == {path.removeprefix("torchinductor/") for path in ARTIFACTS}
    assert cache.newest_age_s is not None
    assert 0 <= cache.newest_age_s < 600
    assert verdict(look(layout).flashinfer) == (False, "no_completion")


def test_a_signature_that_differs_names_the_fields(layout: Layout) -> None:
    built(layout)
    cache = inductor(layout, now=signature(python="3.13", driver_version="999"))
    assert verdict(cache) == (False, "signature_mismatch")
    assert [each.field for each in cache.differences] == ["python"]
    assert cache.detail == "python was 3.12, is 3.13"
    assert cache.signature.python == "3.12", "the completion's, which the verdict is about"


def test_a_file_that_is_gone(layout: Layout) -> None:
    built(layout)
    (layout.profiles / ARTIFACTS[0]).unlink()
    assert verdict(inductor(layout)) == (False, "files_missing")


def test_a_file_replaced_by_a_link_to_the_same_content_is_gone(layout: Layout, tmp_path: Path) -> None:
    built(layout)
    path = layout.profiles / ARTIFACTS[0]
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert verdict(inductor(layout, deep=True)) == (False, "files_missing")


def test_a_file_of_another_size(layout: Layout) -> None:
    built(layout)
    (layout.profiles / ARTIFACTS[0]).write_text("truncated", encoding="utf-8")
    assert verdict(inductor(layout)) == (False, "files_changed")


def test_a_file_of_another_content_is_found_by_looking_deep(layout: Layout) -> None:
    made = built(layout)
    assert wrong_hashes(layout.profiles, made) == ()
    path = layout.profiles / ARTIFACTS[0]
    path.write_text("SO!", encoding="utf-8")
    os.utime(path, (0, 0))
    assert verdict(inductor(layout)) == (True, None)
    assert verdict(inductor(layout, deep=True)) == (False, "hash_mismatch")
    assert wrong_hashes(layout.profiles, made) == (ARTIFACTS[0],)


def test_what_was_written_again_since_is_looked_into(layout: Layout) -> None:
    """Whose size did not tell. What has been written again with the same content holds."""
    built(layout)
    for path in ARTIFACTS:
        (layout.profiles / path).write_bytes((layout.profiles / path).read_bytes())
    assert verdict(inductor(layout)) == (True, None)
    (layout.profiles / ARTIFACTS[0]).write_text("SO!", encoding="utf-8")
    assert verdict(inductor(layout)) == (False, "hash_mismatch")


def test_a_tuned_config_of_another_content_is_always_found(layout: Layout) -> None:
    """A server reads it as it is, and the result tells its hash."""
    path = "moe_configs/configs/triton_3_6_0/E=8.json"
    fill(layout, {path: "{1}"})
    listed = {path: (3, hash_files(layout.profiles, [path])[path])}
    built(layout, StageName.MOE_TUNE, artifacts=listed)
    assert verdict(look(layout).moe_configs) == (True, None)
    fill(layout, {path: "{2}"})
    assert verdict(look(layout).moe_configs) == (False, "hash_mismatch")


def test_a_file_that_cannot_be_hashed_is_not_taken_for_right(layout: Layout) -> None:
    made = built(layout)
    path = layout.profiles / ARTIFACTS[0]
    path.unlink()
    path.mkdir()
    assert wrong_hashes(layout.profiles, made) == (ARTIFACTS[0],)
    assert not inductor(layout, deep=True).valid


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": "9"}'])
def test_a_completion_that_cannot_be_read(layout: Layout, content: str) -> None:
    made = built(layout)
    layout.completion(INDUCTOR, made.key).write_text(content, encoding="utf-8")
    cache = inductor(layout)
    assert verdict(cache) == (False, "completion_unreadable")
    assert made.key in (cache.detail or "")


def test_a_completion_of_another_format(layout: Layout) -> None:
    write_completion(layout, built(layout).model_copy(update={"schema_version": "3"}))
    assert verdict(inductor(layout)) == (False, "completion_of_another_format")


@pytest.mark.parametrize("wanted", [WANTED, None])
def test_a_marker_makes_it_partial_whatever_else_holds(layout: Layout, wanted: Wanted | None) -> None:
    built(layout)
    write_marker(layout, "tiny-dense", INDUCTOR, MARKER)
    snapshot = look(layout, wanted)
    cache = snapshot.torchinductor
    assert verdict(cache) == (False, "in_progress_or_aborted")
    assert (snapshot.partial, cache.partial) == (True, True)
    assert cache.partial_info is not None
    assert (cache.partial_info.owner_pid, cache.partial_info.started_at) == (7, MOMENT)
    assert [(each.valid, each.reason) for each in cache.slugs] == [(False, "in_progress_or_aborted")]
    assert not snapshot.flashinfer.partial


def test_a_marker_that_cannot_be_read_is_a_marker(layout: Layout) -> None:
    built(layout)
    write_marker(layout, "tiny-dense", INDUCTOR, MARKER)
    layout.marker("tiny-dense", INDUCTOR).write_text("", encoding="utf-8")
    cache = inductor(layout)
    assert verdict(cache) == (False, "in_progress_or_aborted")
    assert cache.partial_info is not None
    assert cache.partial_info.owner_pid is None


def test_another_models_marker_counts_only_for_who_asks_for_all(layout: Layout) -> None:
    built(layout)
    write_marker(layout, "other", INDUCTOR, MARKER)
    assert verdict(inductor(layout)) == (True, None)
    everyone = inductor(layout, wanted=None)
    assert verdict(everyone) == (False, "in_progress_or_aborted")
    assert [each.valid for each in everyone.slugs] == [True], "this model's own files are whole"


def test_one_stages_marker_spoils_all_caches_that_it_answers_for(layout: Layout) -> None:
    write_marker(layout, "tiny-dense", StageName.SERVE, MARKER)
    snapshot = look(layout)
    spoilt = [cache.value for cache in ANSWERS_FOR if getattr(snapshot, cache.value).partial]
    assert spoilt == ["triton", "sglang_jit", "others"]


@pytest.mark.parametrize("wanted", [WANTED, None])
def test_a_skip_that_was_right_makes_a_cache_valid_with_nothing_in_it(layout: Layout, wanted: Wanted | None) -> None:
    skipped = completion(StageName.SERVE, outcome="skipped", reason="no_gpu", artifacts={}, units=())
    write_completion(layout, skipped)
    snapshot = look(layout, wanted)
    for cache in (snapshot.triton, snapshot.sglang_jit, snapshot.others):
        assert verdict(cache) == (True, "not_needed")
        assert (cache.exists, cache.file_count, cache.detail) == (False, 0, "no_gpu")


def test_a_skip_of_another_host_is_none_here(layout: Layout) -> None:
    skipped = completion(StageName.SERVE, outcome="skipped", reason="no_gpu", artifacts={}, units=())
    write_completion(layout, skipped)
    assert verdict(look(layout, now=signature(compute_capability="sm_100")).triton) == (False, "signature_mismatch")


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_cache_that_is_no_plain_folder_is_never_valid(layout: Layout, tmp_path: Path, kind: str) -> None:
    built(layout)
    folder = layout.cache(CacheName.TORCHINDUCTOR)
    folder.rename(tmp_path / "moved")
    if kind == "link":
        folder.symlink_to(tmp_path / "moved")
    else:
        folder.write_text("", encoding="utf-8")
    cache = inductor(layout, deep=True)
    assert verdict(cache) == (False, "not_a_plain_folder")
    assert cache.exists
    assert cache.file_count == 0
    assert [each.valid for each in cache.slugs] == [False]


def test_who_is_asked_for_decides_which_completions_count(layout: Layout) -> None:
    built(layout)
    assert verdict(inductor(layout, wanted=Wanted("tiny-dense", DIGEST, 2))) == (False, "no_completion")
    assert verdict(inductor(layout, wanted=Wanted("tiny-dense", DIGEST + "0", 1))) == (False, "no_completion")
    assert verdict(inductor(layout, wanted=Wanted("other", DIGEST, 1))) == (False, "no_completion")


def test_the_nearest_to_valid_decides_and_every_model_is_listed(layout: Layout) -> None:
    built(layout, identity=identity(model_slug="whole"))
    built(layout, identity=identity(model_slug="broken"), artifacts={"torchinductor/gone": (1, DIGEST)})
    elsewhere = signature(python="3.9")
    built(layout, identity=identity(model_slug="elsewhere"), signature=elsewhere)
    cache = inductor(layout, wanted=None)
    assert verdict(cache) == (True, None)
    assert {each.model_slug: (each.valid, each.reason) for each in cache.slugs} == {
        "whole": (True, None),
        "broken": (False, "files_missing"),
        "elsewhere": (False, "signature_mismatch"),
    }
    assert cache.signature.model_slug == "whole"


def test_the_signature_has_slug_and_layout_whoever_it_is_of(layout: Layout) -> None:
    assert (inductor(layout).signature.model_slug, inductor(layout).signature.tp_size) == ("tiny-dense", 1)
    assert inductor(layout, wanted=None).signature.model_slug is None
    built(layout, identity=identity(tp=4))
    assert inductor(layout, wanted=None).signature.tp_size == 4


def test_the_path_is_relative_to_home_where_it_lies_there(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert inductor(layout).path == "profiles/torchinductor"
    monkeypatch.setenv("HOME", "/home/other")
    assert inductor(layout).path == f"{tmp_path}/profiles/torchinductor"


def test_what_else_lies_in_a_cache_is_told(layout: Layout) -> None:
    built(layout)
    (layout.profiles / "torchinductor" / "link").symlink_to("nowhere")
    assert inductor(layout).warnings == ("1 links, none of them followed",)


SEED_CACHE = "exists partial partial_info valid path size_bytes file_count latest_mtime_iso signature"
SEED_SIGNATURE = (
    "model_slug device_name compute_capability cuda driver_version torch_version triton_version flashinfer_version"
    " sglang_commit tp_size"
)


def test_the_shape_is_the_contracts(layout: Layout) -> None:
    built(layout)
    fill(layout, {"triton/KEY/a": "x"})
    write_marker(layout, "tiny-dense", StageName.SERVE, MARKER)
    snapshot = look(layout)
    document = json.loads(to_json(snapshot))
    assert document["schema_version"] == "1"
    assert document["partial"] is True
    for name in ("triton", "torchinductor", "flashinfer", "deep_gemm"):
        assert set(SEED_CACHE.split()) <= set(document[name])
        assert set(SEED_SIGNATURE.split()) <= set(document[name]["signature"])
        assert document[name]["signature"]["model_slug"] == "tiny-dense"
    assert set(document["triton"]["partial_info"]) >= {"owner_pid", "started_at"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["triton"]["latest_mtime_iso"])
    assert document["triton"]["reason"] == "in_progress_or_aborted"
    jsonschema.validate(document, ProfileSnapshot.model_json_schema(mode="serialization"))
    assert read_tolerant(ProfileSnapshot, to_json(snapshot)) == snapshot
