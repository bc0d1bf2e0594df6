"""Whole entries: what is removed together, and what is never touched."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayprep.host.entries import entry_bytes, group_entries, remove_entry
from rayprep.host.scan import scan_cache
from rayprep.model.caches import CacheName
from rayprep.model.errors import StageError

INDUCTOR, TRITON = CacheName.TORCHINDUCTOR, CacheName.TRITON


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x", encoding="utf-8")


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_files_are_grouped_by_their_entry_and_foreign_ones_left_out() -> None:
    listed = ["torchinductor/ab/cab.cpp", "torchinductor/ab/cab.so", "triton/KEY/a", "elsewhere/x", "triton", "/etc/x"]
    grouped = group_entries(listed)
    assert grouped == {(INDUCTOR, "ab/cab"): listed[:2], (TRITON, "KEY"): ["triton/KEY/a"]}
    assert entry_bytes(grouped, {listed[0]: 3, listed[1]: 4}, (INDUCTOR, "ab/cab")) == 7


def test_an_entry_goes_with_all_its_files_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "torchinductor/ab/cab.cpp", "torchinductor/ab/cab.so", "torchinductor/ab/cab.lock")
    write(tmp_path, "torchinductor/ab/cab/inner", "torchinductor/ab/cabin.so", "torchinductor/cab.so")
    remove_entry(tmp_path, (INDUCTOR, "ab/cab"))
    assert files(tmp_path) == {"torchinductor/ab/cabin.so", "torchinductor/cab.so"}


def test_a_file_beside_a_folder_of_its_name_does_not_take_the_folder_with_it(tmp_path: Path) -> None:
    """`ab.json` where folders hold many entries is an entry called `ab`, and so is none of what lies in `ab/`."""
    write(tmp_path, "torchinductor/ab.json", "torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph")
    write(tmp_path, "torchinductor/fxgraph/zz.txt")
    remove_entry(tmp_path, (INDUCTOR, "ab"))
    remove_entry(tmp_path, (INDUCTOR, "fxgraph/zz"))
    assert files(tmp_path) == {"torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph"}


def test_folders_left_empty_go_too_but_never_the_caches_own(tmp_path: Path) -> None:
    write(tmp_path, "torchinductor/fxgraph/zz/key/graph")
    remove_entry(tmp_path, (INDUCTOR, "fxgraph/zz/key"))
    assert list((tmp_path / "torchinductor").iterdir()) == []


@pytest.mark.parametrize("below", ["gone", "gone/deeper", "ab/gone"])
def test_an_entry_that_is_not_there_is_no_error(tmp_path: Path, below: str) -> None:
    write(tmp_path, "torchinductor/ab/stays")
    remove_entry(tmp_path, (INDUCTOR, below))
    remove_entry(tmp_path, (TRITON, below))
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
            with pytest.raises(StageError, match="by plain folders"):
                remove_entry(root, (cache, below))
    assert files(root) == {"triton/a", "torchinductor/b"}
    assert len(files(outside)) == 1
    for path in (f"torchinductor/{absolute}/x", "triton//x"):
        (entry,) = group_entries([path])
        with pytest.raises(StageError):
            remove_entry(root, entry)
    assert len(files(outside)) == 1


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "key/graph", "graph")
    (root / "torchinductor").mkdir(parents=True)
    (root / "torchinductor" / "fxgraph").symlink_to(outside)
    with pytest.raises(StageError):
        remove_entry(root, (INDUCTOR, "fxgraph/key"))
    (root / "triton").symlink_to(outside)
    with pytest.raises(StageError):
        remove_entry(root, (TRITON, "key"))
    assert files(outside) == {"key/graph", "graph"}


@pytest.mark.parametrize("name", ["KEY", "KEY.so"])
def test_a_link_inside_an_entry_is_removed_and_not_what_it_leads_to(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "precious")
    write(root, "triton/KEY.json", "triton/other")
    (root / "triton" / name).symlink_to(outside / "precious")
    remove_entry(root, (TRITON, "KEY"))
    assert files(root) == {"triton/other"}
    assert files(outside) == {"precious"}


def test_a_link_inside_an_entrys_folder_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(outside, "precious")
    write(root, "triton/KEY/a")
    (root / "triton" / "KEY" / "link").symlink_to(outside)
    remove_entry(root, (TRITON, "KEY"))
    assert files(root) == set()
    assert files(outside) == {"precious"}


def test_a_root_that_is_a_link_itself_is_used(tmp_path: Path) -> None:
    """How a site moves its storage: only what lies below the root is judged."""
    write(tmp_path / "real", "triton/KEY/a")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    remove_entry(tmp_path / "root", (TRITON, "KEY"))
    assert files(tmp_path / "real") == set()


PARTS = st.text("ab.", min_size=1, max_size=3).filter(lambda part: set(part) != {"."})
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=40, deadline=None)
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
            remove_entry(root, entry)
            there -= set(members)
            assert set(scan_cache(root, cache).files) == there
