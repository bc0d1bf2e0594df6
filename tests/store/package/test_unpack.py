"""Unpacking where something is already: what is whole stays, and what is not comes in again."""

import io
import os
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.host.layout import Layout
from rayprep.model.completion import Completion, cache_key
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.markers import Marker, write_marker
from rayprep.store.moe_folder import kept_copies
from rayprep.store.package import unpack
from rayprep.store.package.manifest import MANIFEST_NAME, PackageManifest, manifest_text
from rayprep.store.package.pack import blocks, make_manifest
from rayprep.store.package.tar_stream import header, padding
from rayprep.store.package.unpack import preview
from tests.model.samples import completion, signature
from tests.store.caches import fill
from tests.store.package.archives import (
    DEAD,
    FLASHINFER,
    INDUCTOR,
    MODULES,
    OLD,
    archive,
    assert_nothing_half,
    every,
    finished,
    packable,
    take,
    there,
)


def test_a_second_time_nothing_is_touched(source: Layout, target: Layout) -> None:
    take(target, archive(source))
    (target.profiles / f"{MODULES}/norm/.ninja_log").write_text("rewritten by use", encoding="utf-8")
    inodes = {path: path.stat().st_ino for path in target.profiles.rglob("*") if ".locks" not in path.parts}
    report = take(target, archive(source))
    assert (report.completions, report.files, len(report.kept)) == ((), 0, 2)
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_what_is_damaged_comes_in_again_and_the_rest_stays(source: Layout, target: Layout) -> None:
    take(target, archive(source))
    (target.profiles / "torchinductor/ab/cab.so").write_text("SO!", encoding="utf-8")
    whole = target.profiles / "torchinductor/fxgraph/zz/key/graph"
    inode = whole.stat().st_ino
    report = take(target, archive(source))
    assert (report.entries, report.files, len(report.completions), len(report.kept)) == (1, 2, 1, 1)
    assert there(target) == packable(source)
    assert whole.stat().st_ino == inode


def test_another_models_build_of_an_entry_stays_and_both_hold(source: Layout, target: Layout) -> None:
    mine = {f"{MODULES}/norm/norm.so": "MINE", f"{MODULES}/norm/build.ninja": "mine"}
    finished(target, FLASHINFER, mine, slug="llama")
    take(target, archive(source))
    texts = {path: text for path, (text, _) in there(target).items()}
    assert texts[f"{MODULES}/norm/norm.so"] == "MINE"
    assert texts[f"{MODULES}/norm/build.ninja"] == "mine"
    assert texts[f"{MODULES}/norm/norm.cuda.o"] == "object"
    assert_nothing_half(target)
    assert len(every(target)) == 3


def test_a_users_config_in_the_place_of_the_received_one_is_kept(source: Layout, target: Layout) -> None:
    path = "moe_configs/configs/triton_3_6_0/E=8,N=64.json"
    finished(source, StageName.MOE_TUNE, {path: '{"1": {}}'})
    finished(target, StageName.MOE_TUNE, {path: '{"2": {}}'})
    (target.profiles / path).write_text('{"17": {}}')
    take(target, archive(source))
    assert (target.profiles / path).read_text() == '{"1": {}}'
    assert [copy.read_text() for copy in kept_copies(target, target.profiles / path)] == ['{"17": {}}']


def test_a_users_config_is_kept_where_an_aborted_builds_files_go(source: Layout, target: Layout) -> None:
    finished(source, StageName.MOE_TUNE, {"moe_configs/configs/triton_3_6_0/E=8,N=64.json": '{"1": {}}'})
    write_marker(target, "qwen", StageName.MOE_TUNE, DEAD)
    path = "moe_configs/configs/triton_3_6_0/E=9,N=64.json"
    fill(target, {path: '{"17": {}}'})
    take(target, archive(source))
    assert [copy.read_text() for copy in kept_copies(target, target.profiles / path)] == ['{"17": {}}']


def test_what_an_aborted_build_left_goes_and_its_marker(source: Layout, target: Layout) -> None:
    write_marker(
        target, "qwen", FLASHINFER, Marker(owner_pid=1, started_at=completion().started_at, run_id="d", host="h")
    )
    fill(target, {f"{MODULES}/half/half.so": "ha", f"{MODULES}/norm/norm.so": "no"})
    fill(target, {f"{MODULES}/earlier/e.so": "e"})
    os.utime(target.profiles / f"{MODULES}/earlier/e.so", ns=(OLD, OLD))
    take(target, archive(source))
    left = there(target)
    assert left.pop(f"{MODULES}/earlier/e.so")
    assert left == packable(source)


def test_a_dry_run_proves_and_writes_nothing(source: Layout, target: Layout) -> None:
    data = archive(source)
    report = preview(target, io.BytesIO(data), signature())
    assert (report.dry_run, report.files, len(report.completions)) == (True, 9, 2)
    assert list(target.profiles.iterdir()) == []
    with pytest.raises(BadRequest, match="content of"):
        preview(target, io.BytesIO(data.replace(b"norm\0", b"NORM\0")), signature())


def test_a_secret_that_an_earlier_version_has_packed_is_not_written_here(source: Layout, target: Layout) -> None:
    first = every(source)[0]
    whose = first.identity.model_copy(update={"compiler_settings": ("TORCHINDUCTOR_REDIS_URL=redis://:hunter2@h",)})
    hiding = first.model_copy(update={"identity": whose, "key": cache_key(first.stage, whose, first.signature)})
    manifest = make_manifest(source, [hiding])
    take(target, b"".join(blocks(source, manifest)))
    (found,) = every(target)
    assert found.identity == first.identity
    assert not any(b"hunter" in path.read_bytes() for path in target.profiles.rglob("*") if path.is_file())


def test_what_does_not_read_back_is_not_said_to_be_done(
    source: Layout, target: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that does not keep what it is given: a completion that changes, or a file that is not there."""
    data, right = archive(source), write_completion

    def spoil(layout: Layout, made: Completion) -> Path:
        path = right(layout, made)
        path.write_text(path.read_text(encoding="utf-8").replace('"duration_s":10.0', '"duration_s":1e400'))
        return path

    def lose(layout: Layout, made: Completion) -> Path:
        for name in made.artifacts:
            (layout.profiles / name).unlink()
        return right(layout, made)

    for writer in (spoil, lose):
        monkeypatch.setattr(unpack, "write_completion", writer)
        with pytest.raises(HostUnfit, match="is not valid here"):
            take(target, data)
        assert every(target) == []
        assert target.marker("qwen", FLASHINFER).exists()
    monkeypatch.setattr(unpack, "write_completion", right)
    take(target, data)
    assert there(target) == packable(source)


def test_a_part_and_its_whole_come_together(source: Layout, target: Layout) -> None:
    """Writing the whole drops the part, which is then no failure."""
    whole = every(source)[1]
    for part in ("1 of 2", "2 of 2"):
        write_completion(
            source,
            completion(INDUCTOR, identity=whole.identity.model_copy(update={"part": part}), artifacts=whole.artifacts),
        )
    assert len(every(source)) == 4
    take(target, archive(source))
    assert whole in every(target)


def test_a_dry_run_says_too_that_the_disk_is_too_small(target: Layout) -> None:
    path = "torchinductor/ab/large"
    made = completion(artifacts={path: (1 << 62, "sha256:" + "0" * 64)})
    text = manifest_text(PackageManifest(rayprep_version="0", completions=(made,), companions={}, mtimes={path: 0}))
    data = header(MANIFEST_NAME, len(text)) + text + padding(len(text)) + header(path, 1 << 62)
    for work in (lambda: take(target, data), lambda: preview(target, io.BytesIO(data), signature())):
        with pytest.raises(HostUnfit, match="bytes free") as raised:
            work()
        assert raised.value.error_type is ErrorType.INSUFFICIENT_DISK
    assert there(target) == {}
