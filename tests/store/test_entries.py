"""Whole entries: what is removed together, and what is never touched."""

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayprep.host.layout import Layout
from rayprep.host.owned import OwnedTree
from rayprep.model.caches import CacheName, Entry
from rayprep.model.stages import StageName
from rayprep.store.entries import find_places, group_entries, remove_entry
from rayprep.store.scan import scan_cache

INDUCTOR, TRITON, DEEP_GEMM = CacheName.TORCHINDUCTOR, CacheName.TRITON, CacheName.DEEP_GEMM


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x", encoding="utf-8")


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def remove(root: Path, entry: Entry) -> None:
    for each, places in find_places(root, [entry]).items():
        remove_entry(Layout(root, root), each, places)


def test_files_are_grouped_by_their_entry_and_foreign_ones_left_out() -> None:
    listed = ["torchinductor/ab/cab.cpp", "torchinductor/ab/cab.so", "triton/KEY/a", "elsewhere/x", "triton", "/etc/x"]
    grouped = group_entries(listed)
    assert grouped == {(INDUCTOR, "ab/cab"): listed[:2], (TRITON, "KEY"): ["triton/KEY/a"]}


def test_an_entry_goes_with_all_its_files_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "torchinductor/ab/cab.cpp", "torchinductor/ab/cab.so", "torchinductor/ab/cab.lock")
    write(tmp_path, "torchinductor/ab/cab/inner", "torchinductor/ab/cabin.so", "torchinductor/cab.so")
    remove(tmp_path, (INDUCTOR, "ab/cab"))
    assert files(tmp_path) == {"torchinductor/ab/cabin.so", "torchinductor/cab.so"}


def test_a_file_beside_a_folder_of_its_name_does_not_take_the_folder_with_it(tmp_path: Path) -> None:
    """`ab.json` where folders hold many entries is an entry called `ab`, and so is none of what lies in `ab/`."""
    write(tmp_path, "torchinductor/ab.json", "torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph")
    write(tmp_path, "torchinductor/fxgraph/zz.txt")
    remove(tmp_path, (INDUCTOR, "ab"))
    remove(tmp_path, (INDUCTOR, "fxgraph/zz"))
    assert files(tmp_path) == {"torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph"}


def test_folders_left_empty_go_too_but_never_the_caches_own(tmp_path: Path) -> None:
    write(tmp_path, "torchinductor/fxgraph/zz/key/graph")
    remove(tmp_path, (INDUCTOR, "fxgraph/zz/key"))
    assert list((tmp_path / "torchinductor").iterdir()) == []


@pytest.mark.parametrize("below", ["gone", "gone/deeper", "ab/gone"])
def test_an_entry_that_is_not_there_is_no_error(tmp_path: Path, below: str) -> None:
    write(tmp_path, "torchinductor/ab/stays")
    remove(tmp_path, (INDUCTOR, below))
    remove(tmp_path, (TRITON, below))
    assert files(tmp_path) == {"torchinductor/ab/stays"}


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_outside_is_reached_whatever_the_entry_is_called(tmp_path: Path, folder: bool) -> None:
    """`torchinductor//etc/passwd` in a list of files makes the entry `/etc`."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "triton/a", "torchinductor/b")
    write(tmp_path, "outside/inner/precious" if folder else "outside/inner")
    absolute = str(outside / "inner")
    for below in (absolute, "/" + absolute, "../../outside/inner", "a/../../../outside/inner", "", ".", "..", "a//b"):
        for cache in (TRITON, INDUCTOR):
            with pytest.raises(OSError, match="by plain folders"):
                remove(root, (cache, below))
    assert files(root) == {"triton/a", "torchinductor/b"}
    assert len(files(outside)) == 1
    for path in (f"torchinductor/{absolute}/x", "triton//x"):
        (entry,) = group_entries([path])
        with pytest.raises(OSError, match="by plain folders"):
            remove(root, entry)
        with pytest.raises(OSError, match="by plain folders"):
            remove_entry(Layout(root, root), entry, ["../../outside/inner"])
    assert len(files(outside)) == 1


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "key/graph", "graph")
    (root / "torchinductor").mkdir(parents=True)
    (root / "torchinductor" / "fxgraph").symlink_to(outside)
    with pytest.raises(OSError, match="by plain folders"):
        remove(root, (INDUCTOR, "fxgraph/key"))
    (root / "triton").symlink_to(outside)
    with pytest.raises(OSError, match="by plain folders"):
        remove(root, (TRITON, "key"))
    assert files(outside) == {"key/graph", "graph"}


@pytest.mark.parametrize(
    ("entry", "link"),
    [((TRITON, "KEY"), "triton/KEY"), ((DEEP_GEMM, "cache/kernel.a.0"), "deep_gemm/cache/kernel.a.0")],
)
def test_a_link_in_the_place_of_an_entrys_folder_goes_and_what_it_leads_to_stays(
    tmp_path: Path, entry: Entry, link: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "precious")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    remove(root, entry)
    assert files(root) == set()
    assert files(outside) == {"precious"}


@pytest.mark.parametrize("name", ["KEY", "KEY.so"])
def test_a_link_inside_an_entry_is_removed_and_not_what_it_leads_to(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "precious")
    write(root, "triton/KEY.json", "triton/other")
    (root / "triton" / name).symlink_to(outside / "precious")
    remove(root, (TRITON, "KEY"))
    assert files(root) == {"triton/other"}
    assert files(outside) == {"precious"}


def test_a_link_inside_an_entrys_folder_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "precious")
    write(root, "triton/KEY/a")
    (root / "triton" / "KEY" / "link").symlink_to(outside)
    remove(root, (TRITON, "KEY"))
    assert files(root) == set()
    assert files(outside) == {"precious"}


def test_a_root_that_is_a_link_itself_is_used(tmp_path: Path) -> None:
    """How a site moves its storage: only what lies below the root is judged."""
    write(tmp_path / "real", "triton/KEY/a")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    remove(tmp_path / "root", (TRITON, "KEY"))
    assert files(tmp_path / "real") == set()


def test_a_folder_has_left_its_cache_whole_before_anything_of_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "deep_gemm/cache/kernel.a.0/kernel.cu", "deep_gemm/cache/kernel.a.0/kernel.cubin")
    seen: list[str] = []
    monkeypatch.setattr(OwnedTree, "remove", lambda *_: seen.extend(files(tmp_path)))
    remove(tmp_path, (DEEP_GEMM, "cache/kernel.a.0"))
    assert {Path(path).name for path in seen} == {"kernel.cu", "kernel.cubin"}
    (aside,) = {Path(path).parent for path in seen}
    assert aside.parent == Path(".rayprep/scratch")
    assert aside.name not in list(StageName)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSPC, errno.EDQUOT])
def test_what_cannot_be_moved_aside_is_removed_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    write(tmp_path, "triton/KEY/a", "triton/other/b")
    monkeypatch.setattr(OwnedTree, "rename", refuse)
    remove(tmp_path, (TRITON, "KEY"))
    assert files(tmp_path) == {"triton/other/b"}


def test_what_is_written_again_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "triton/KEY/a")
    monkeypatch.setattr(OwnedTree, "remove", lambda *_: write(tmp_path, "triton/KEY/a"))
    with pytest.raises(FileExistsError, match="written again"):
        remove(tmp_path, (TRITON, "KEY"))


def test_a_folder_is_listed_once_for_all_its_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(TRITON, f"KEY{number}") for number in range(20)]
    write(tmp_path, *(f"triton/{name}{end}" for _, name in entries for end in ("/a", ".lock")))
    listed = []
    scandir = os.scandir

    def counted(path: Path) -> Iterable[os.DirEntry[str]]:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr("rayprep.store.entries.os.scandir", counted)
    places = find_places(tmp_path, entries)
    assert listed == [tmp_path / "triton"]
    assert {entry: sorted(each) for entry, each in places.items()} == {
        entry: [entry[1], f"{entry[1]}.lock"] for entry in entries
    }


PARTS = st.text("ab.", min_size=1, max_size=3).filter(lambda part: set(part) != {"."})
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=40)
@given(st.sampled_from([INDUCTOR, TRITON, CacheName.MOE_CONFIGS, CacheName.OTHERS]), st.sets(PATHS, max_size=10))
def test_removing_an_entry_removes_exactly_the_files_that_are_grouped_in_it(cache: CacheName, paths: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path in sorted(paths, key=len):
            place = root / cache.value / path
            if not place.exists() and not any(parent.is_file() for parent in place.parents):
                write(root, f"{cache.value}/{path}")
        there = set(scan_cache(root, cache).files)
        for entry, members in group_entries(there).items():
            remove(root, entry)
            there -= set(members)
            assert set(scan_cache(root, cache).files) == there
