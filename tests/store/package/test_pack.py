"""Archives of real folders: what is packed comes out the same, and the rest of one can be made alone."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from rayprep.store.package import pack as pack_module
from rayprep.store.package.manifest import MANIFEST_NAME
from rayprep.store.package.pack import blocks, make_manifest
from tests.store.package.archives import archive, every, packable, take, there


def test_what_is_packed_comes_out_the_same(source: Layout, target: Layout) -> None:
    report = take(target, archive(source))
    assert there(target) == packable(source)
    assert (report.entries, report.files, len(report.completions)) == (5, 9, 2)
    assert not (target.profiles / ".rayprep" / "scratch").exists()
    assert not list((target.profiles / ".in_progress").rglob("*"))


def test_the_same_caches_make_the_same_archive_and_any_tar_reads_it(source: Layout, tmp_path: Path) -> None:
    data = archive(source)
    assert data == archive(source)
    names = subprocess.run(["tar", "t"], input=data, capture_output=True, check=True).stdout.decode().splitlines()
    assert names[0] == MANIFEST_NAME
    assert len(names) == 10
    subprocess.run(["tar", "x", "-C", str(tmp_path)], input=data, check=True)
    assert (tmp_path / "torchinductor/ab/cab.so").read_text(encoding="utf-8") == "so!"


def test_the_rest_of_an_archive_is_made_without_what_lies_before_it(
    source: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "CHUNK", 3)  # so that files come in several blocks
    manifest, data = make_manifest(source, every(source)), archive(source)
    for start in range(0, len(data), 333):
        assert b"".join(blocks(source, manifest, start)) == data[start:]
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        ends = {each.name: each.offset_data + each.size + -each.size % 512 for each in members}
    for file in manifest.files:
        (source.profiles / file.path).unlink()
        end = ends[file.path]
        assert b"".join(blocks(source, manifest, end)) == data[end:]
