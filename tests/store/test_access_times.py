"""Which files were read, on a real file system."""

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayprep.store.access_times import ReadTracker
from tests.needs import needs_namespaces

NAMES = ("read", "mapped", "listed", "left")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_text(name, encoding="utf-8")
        os.utime(tmp_path / name, (2e9, 1e9))  # last read long after it was last written
    return tmp_path


def tracking(root: Path) -> ReadTracker:
    tracker = ReadTracker(root, NAMES)
    if not tracker.works:
        pytest.skip("this file system keeps no access times")
    return tracker


def test_only_what_was_read_counts(root: Path) -> None:
    tracker = tracking(root)
    assert tracker.read_of(NAMES) == frozenset()
    (root / "read").read_bytes()
    with (root / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:1] == b"m"
    assert (root / "listed").stat().st_size == 6
    assert tracker.read_of(NAMES) == {"read", "mapped"}
    assert tracker.read_of(["left", "listed"]) == frozenset()


def test_what_was_made_or_written_anew_counts(root: Path) -> None:
    tracker = tracking(root)
    (root / "made").write_text("x", encoding="utf-8")
    (root / "fresh").write_text("x", encoding="utf-8")
    (root / "fresh").rename(root / "left")
    assert tracker.read_of([*NAMES, "made"]) == {"made", "left"}


def test_a_second_look_starts_anew(root: Path) -> None:
    tracking(root)
    (root / "read").read_bytes()
    assert tracking(root).read_of(NAMES) == frozenset()


def test_times_of_change_stay_and_nothing_is_left(root: Path) -> None:
    before = {name: (root / name).stat().st_mtime_ns for name in NAMES}
    ReadTracker(root, [*NAMES, "gone"])
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_nothing_looks_long_unread(root: Path) -> None:
    """Or a file system that is cleared of old files would lose what other models need."""
    tracking(root)
    times = [(root / name).stat() for name in NAMES]
    assert {each.st_mtime - each.st_atime for each in times} == {1.0}


def test_a_file_that_took_long_to_write_was_made(root: Path) -> None:
    tracker = tracking(root)
    for name in ("made", "left"):
        (root / name).write_text("x", encoding="utf-8")
        os.utime(root / name, (1.5e9, 1.5e9 + 60))  # nobody has read it since it was opened
    assert tracker.read_of([*NAMES, "made"]) == {"made", "left"}


def test_what_is_gone_was_not_read(root: Path) -> None:
    tracker = tracking(root)
    (root / "left").unlink()
    assert tracker.read_of(["left", "never"]) == frozenset()


def test_a_link_is_not_followed(root: Path) -> None:
    (root / "link").symlink_to("read")
    tracker = tracking(root)
    before = (root / "read").stat().st_atime_ns
    ReadTracker(root, ["link"])
    assert (root / "read").stat().st_atime_ns == before
    assert "link" not in tracker.read_of(["left"])


def test_a_root_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    tracker = ReadTracker(tmp_path / "gone", ["a"])
    assert not tracker.works
    assert tracker.read_of(["a", "b"]) == {"a", "b"}


@needs_namespaces()
@pytest.mark.namespaces
@pytest.mark.parametrize(("option", "works"), [("noatime", False), ("relatime", True), ("strictatime", True)])
def test_where_no_access_times_are_kept_everything_counts(tmp_path: Path, option: str, works: bool) -> None:
    program = (
        "import pathlib, sys; from rayprep.store.access_times import ReadTracker; root = pathlib.Path(sys.argv[1])\n"
        "(root / 'a').write_text('a'); tracker = ReadTracker(root, ['a'])\n"
        "print(tracker.works, sorted(tracker.read_of(['a'])))"
    )
    mounted = f'mount -t tmpfs -o {option} none "$2" && exec "$0" -c "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mounted, sys.executable, program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"{works} {[] if works else ['a']}"


def test_trying_out_leaves_nothing_in_the_root_that_anybody_could_replace(root: Path) -> None:
    """A member of the group who saw a name could put a link there, which is then written to."""
    over, names = threading.Event(), set[str]()

    def look() -> None:
        while not over.is_set():
            names.update(path.name for path in root.iterdir())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(100):
            ReadTracker(root, ())
    finally:
        over.set()
        watcher.join(30)
    assert names == set(NAMES)


def test_no_times_are_set_through_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "file").touch()
    before = (victim / "file").stat()
    (root / "folder").symlink_to(victim)
    tracker = ReadTracker(root, ["folder/file"])
    assert (victim / "file").stat() == before
    assert tracker.read_of(["folder/file"]) <= {"folder/file"}
