"""Folders of ours: by plain folders alone, and of nobody whom the root's owner does not trust."""

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.host.files import read_text
from rayprep.host.owned import OwnedTree, Places, open_to_all
from tests.host.other_user import NOBODY
from tests.needs import needs_root

SOMEBODY = NOBODY - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    (folder / "inner" / "scratch").mkdir(parents=True)
    (folder / "inner" / "scratch" / "precious").write_text("keep", encoding="utf-8")
    return folder


USES: dict[str, Callable[[OwnedTree, Path], object]] = {
    "folder": lambda tree, place: tree.make(place / "inner"),
    "names": lambda tree, place: tree.names(place / "inner"),
    "read": lambda tree, place: tree.read(place / "inner" / "scratch" / "precious"),
    "write": lambda tree, place: tree.write(place / "inner" / "new", "x"),
    "open": lambda tree, place: tree.open(place / "inner" / "new", os.O_WRONLY | os.O_CREAT),
    "status": lambda tree, place: tree.status(place / "inner" / "scratch"),
    "touch": lambda tree, place: tree.touch(place / "inner" / "scratch" / "precious"),
    "unlink": lambda tree, place: tree.unlink(place / "inner" / "scratch" / "precious", missing_ok=True),
    "rmdir": lambda tree, place: tree.rmdir(place / "inner"),
    "remove": lambda tree, place: tree.remove(place / "inner" / "scratch"),
    "rename": lambda tree, place: tree.rename(place / "inner" / "scratch", tree.root / "stolen"),
    "rename into": lambda tree, place: tree.rename(tree.root / "mine", place / "inner" / "mine"),
    "link": lambda tree, place: tree.link(place / "inner" / "link", "x", "aside"),
}


def tree_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


@pytest.mark.parametrize("use", USES)
def test_nothing_is_done_through_a_link(root: Path, victim: Path, use: str) -> None:
    (root / "place").symlink_to(victim)
    (root / "mine").touch()
    before = tree_of(victim)
    with pytest.raises(OSError, match="a link, which is not followed") as caught:
        USES[use](OwnedTree(root), root / "place")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(root / "place"))
    assert tree_of(victim) == before


@pytest.mark.parametrize("use", ["read", "open", "touch", "unlink", "remove", "write"])
def test_a_link_itself_is_read_by_nobody_and_goes_alone(root: Path, victim: Path, use: str) -> None:
    precious = victim / "inner" / "scratch" / "precious"
    (root / "link").symlink_to(precious if use != "remove" else victim)
    tree, before = OwnedTree(root), tree_of(victim)
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: tree.read(root / "link"),
        "open": lambda: tree.open(root / "link", os.O_WRONLY | os.O_CREAT),
        "touch": lambda: tree.touch(root / "link"),
        "unlink": lambda: tree.unlink(root / "link"),
        "remove": lambda: tree.remove(root / "link"),
        "write": lambda: tree.write(root / "link", "mine"),
    }
    if use in ("read", "open"):
        with pytest.raises(OSError, match="link") as caught:
            uses[use]()
        assert caught.value.errno == errno.ELOOP
    else:
        uses[use]()
    assert tree_of(victim) == before
    assert (root / "link").is_symlink() == (use in ("read", "open", "touch"))


@pytest.mark.parametrize("path", ["../victim/inner", "a/../../victim/inner"])
def test_nothing_outside_the_root_has_a_path_below_it(root: Path, victim: Path, path: str) -> None:
    (root / "a").mkdir()
    with pytest.raises(OSError, match="outside its root"):
        OwnedTree(root).remove(Path(f"{root}/{path}"))
    assert (victim / "inner" / "scratch" / "precious").exists()


def test_a_root_behind_a_link_is_a_root(root: Path) -> None:
    root.with_name("moved").symlink_to(root)
    tree = OwnedTree(root.with_name("moved"))
    tree.write(tree.root / "a" / "b" / "file", "content")
    assert read_text(root / "a" / "b" / "file") == "content"
    assert tree.names(tree.root / "a") == ["b"]
    assert tree.names(tree.root / "absent") == []
    tree.remove(tree.root / "a")
    tree.remove(tree.root / "a")
    assert list(root.iterdir()) == []


@needs_root()
@pytest.mark.parametrize(
    ("root_of", "folder_of", "trusted"),
    [
        ((0, 0, 0o755), (0, 0, 0o755), True),
        ((0, 0, 0o755), (SOMEBODY, SOMEBODY, 0o755), False),
        ((SOMEBODY, SOMEBODY, 0o755), (SOMEBODY, SOMEBODY, 0o755), True),
        ((SOMEBODY, NOBODY, 0o2775), (SOMEBODY - 1, NOBODY, 0o2775), True),
        ((SOMEBODY, NOBODY, 0o2775), (SOMEBODY - 1, SOMEBODY - 1, 0o775), False),
        ((SOMEBODY, NOBODY, 0o2755), (SOMEBODY - 1, NOBODY, 0o2775), False),
        ((0, 0, 0o755), (0, 0, 0o777), False),
        ((0, 0, 0o755), (0, 0, 0o1777), False),
        ((0, NOBODY, 0o3777), (SOMEBODY, NOBODY, 0o2775), False),
        ((0, 0, 0o777), (0, 0, 0o777), True),
        ((0, NOBODY, 0o777), (SOMEBODY, NOBODY, 0o775), False),
    ],
)
def test_whose_folder_may_be_used(
    root: Path, root_of: tuple[int, int, int], folder_of: tuple[int, int, int], trusted: bool
) -> None:
    folder = root / ".rayprep"
    folder.mkdir()
    for path, (uid, gid, mode) in ((root, root_of), (folder, folder_of)):
        os.chown(path, uid, gid)
        path.chmod(mode)
    tree = OwnedTree(root)
    if trusted:
        tree.refuse_strange(folder)
        return
    with pytest.raises(HostUnfit, match=f"^{folder} is not used") as caught:
        tree.refuse_strange(folder / "deeper")
    assert caught.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED
    with pytest.raises(PermissionError):
        tree.write(folder / "file", "x")
    OwnedTree(root, strict=False).write(folder / "file", "x")


def test_a_folder_that_is_swapped_for_a_link_meanwhile_leads_nowhere(root: Path, victim: Path) -> None:
    """A member of the group renames the folder away and puts a link there, again and again."""
    tree, over, before = OwnedTree(root), threading.Event(), tree_of(victim)
    place = root / "place"
    place.mkdir()

    def swap() -> None:
        steps = (
            lambda: place.rename(root / "away"),
            lambda: place.symlink_to(victim),
            place.unlink,
            lambda: shutil.rmtree(place),
            lambda: (root / "away").rename(place),
        )
        while not over.is_set():
            for step in steps:
                with contextlib.suppress(OSError):  # it was made anew, or removed, in between
                    step()

    attacker = threading.Thread(target=swap)
    attacker.start()
    done = 0
    try:
        while done < 50:
            try:
                tree.write(place / "inner" / "scratch" / "file", "mine")
                tree.remove(place / "inner" / "scratch")
                done += 1
            except OSError:
                continue
    finally:
        over.set()
        attacker.join(30)
    assert tree_of(victim) == before


def test_folders_are_made_as_the_umask_says_and_scratch_for_this_user(root: Path) -> None:
    tree = OwnedTree(root)
    tree.make(root / "a" / "private", 0o700)
    before = os.umask(0o002)
    try:
        tree.make(root / "b" / "c")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("a/private", "b", "b/c")}
    assert modes == {"a/private": 0o700, "b": 0o775, "b/c": 0o775}


def test_one_folder_is_kept_open_until_another_is_asked_for(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Places(OwnedTree(root)) as places:
        first = places.folder(f"{root}/a/b", make=True)
        assert places.folder(f"{root}/a/b") == first
        places.folder(f"{root}/a/c", make=True)
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
        (root / "a" / "c").rmdir()
        places.forget()
        with pytest.raises(FileNotFoundError):
            places.folder(f"{root}/a/c")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_everybody_may_replace_is_named(root: Path) -> None:
    (root / "open" / "profiles").mkdir(parents=True)
    assert open_to_all(root / "open" / "profiles") == []
    (root / "open").chmod(0o777)
    assert open_to_all(root / "open" / "profiles") == [root / "open"]
    (root / "open" / "profiles").chmod(0o777)
    assert open_to_all(root / "open" / "profiles") == [root / "open" / "profiles", root / "open"]
    (root / "open").chmod(0o1777)
    assert open_to_all(root / "open" / "profiles") == [root / "open" / "profiles"]
    (root / "open" / "profiles").chmod(0o1777)
    assert open_to_all(root / "open" / "profiles") == [root / "open" / "profiles"]
    (root / "open" / "profiles").chmod(0o1775)
    assert open_to_all(root / "open" / "profiles") == []


@needs_root()
def test_a_new_folder_is_of_the_group_that_shares_the_root(root: Path) -> None:
    os.chown(root, -1, NOBODY)
    root.chmod(0o775)
    OwnedTree(root).make(root / "a" / "b")
    assert {(root / name).stat().st_gid for name in ("a", "a/b")} == {NOBODY}
