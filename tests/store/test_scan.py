"""Looking through caches: what counts, what is only said, and what must never be followed."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayprep.model.caches import CACHES, CacheName, FileKind, classify
from rayprep.store.scan import NEWEST, hash_files, scan_cache
from tests.host.other_user import NOBODY, as_user
from tests.host.programs import ended, next_line
from tests.needs import needs_root
from tests.processes import wait_for

TRITON = CacheName.TRITON


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    scan = scan_cache(tmp_path, TRITON)
    assert (scan.exists, scan.obstacle, scan.files, scan.latest_mtime, scan.newest_files) == (False, None, {}, None, ())


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "triton" / "deep" / "down").mkdir(parents=True)
    scan = scan_cache(tmp_path, TRITON)
    assert (scan.exists, scan.obstacle, scan.files, scan.size_bytes, scan.warnings) == (True, None, {}, 0, ())
    assert scan.latest_mtime is None


def test_files_are_found_by_their_path_below_the_root_with_their_size(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "KEY" / "a.cubin", "12345")
    write(tmp_path / "triton" / "KEY" / "sub" / "ü b.json", "12")
    write(tmp_path / "triton" / "empty", "")
    write(tmp_path / "other", "not in this cache")
    scan = scan_cache(tmp_path, TRITON)
    assert scan.files == {"triton/KEY/a.cubin": 5, "triton/KEY/sub/ü b.json": 2, "triton/empty": 0}
    assert scan.size_bytes == 7
    assert scan.warnings == ()


def test_the_newest_come_first_and_are_few(tmp_path: Path) -> None:
    for number in range(NEWEST + 4):
        path = write(tmp_path / "triton" / f"f{number}", "x" * number)
        os.utime(path, (0, 1_700_000_000 + number))
    scan = scan_cache(tmp_path, TRITON)
    assert [each.path for each in scan.newest_files] == ["f8", "f7", "f6", "f5", "f4"]
    assert scan.newest_files[0].mtime_iso == "2023-11-14T22:13:28Z"
    assert scan.newest_files[0].size_bytes == 8
    assert scan.latest_mtime == 1_700_000_008


@pytest.mark.parametrize("when", [-62135596800 - 10, -1, 0, 4102444800, 253402300800, 2**53])
def test_a_file_of_any_time_can_be_named(when: int) -> None:
    """tmpfs keeps any time that it is given, others what fits."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.utime(write(Path(folder) / "triton" / "a"), (0, when))
        (newest,) = scan_cache(Path(folder), TRITON).newest_files
        assert newest.path == "a"


ALL_KINDS = [
    *("a.cubin", "a.so", "a.json", "a.lock", "a.log", "a.tmp", ".ninja_log", ".ninja_deps", "build.ninja"),
    *(
        "tmp/a",
        "sub/tmp/b",
        "lock/c",
        "locks/d",
        "x/locks/deep/e",
        "tmpx/f",
        "tmp.1/g",
        "sub/.hidden",
        "sub/lock",
        "sub/tmp",
    ),
]


@pytest.mark.parametrize("cache", CacheName)
def test_only_artifacts_count_and_they_are_those_of_the_table(tmp_path: Path, cache: CacheName) -> None:
    made = [path for path in ALL_KINDS if path not in ("sub/tmp",)]
    for path in made:
        write(tmp_path / cache.value / path)
    artifacts = {path for path in made if classify(cache, tuple(path.split("/"))) is FileKind.ARTIFACT}
    scan = scan_cache(tmp_path, cache)
    assert set(scan.files) == {f"{cache.value}/{path}" for path in artifacts}
    assert {each.path for each in scan.newest_files} <= artifacts
    assert {"a.cubin", "tmpx/f"} <= artifacts
    assert ("sub/lock" in artifacts) is (cache is not CacheName.SGLANG_JIT), "its lock files are called just that"
    assert artifacts.isdisjoint({"a.lock", "a.log", "a.tmp", "tmp/a", "sub/tmp/b", "lock/c", "locks/d", "tmp.1/g"})
    assert artifacts.isdisjoint(CACHES[cache].companion_names)


PARTS = st.text("at.", min_size=1, max_size=4) | st.sampled_from(
    ["tmp", "tmp.1", "lock", "locks", "build.ninja", "x.lock"]
)
PATHS = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4)


@settings(max_examples=30)
@given(st.sampled_from(list(CacheName)), st.lists(PATHS, max_size=8))
def test_a_scan_and_the_table_agree_on_any_tree(cache: CacheName, paths: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = set()
        for parts in paths:
            path = root.joinpath(cache.value, *parts)
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                write(path)
                made.add(tuple(parts))
        expected = {"/".join((cache.value, *parts)) for parts in made if classify(cache, parts) is FileKind.ARTIFACT}
        assert set(scan_cache(root, cache).files) == expected


def test_no_link_is_followed_in_or_out_and_loops_end(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "secret", "s" * 100).parent
    top = write(tmp_path / "triton" / "real").parent
    (top / "out").symlink_to(outside)
    (top / "out_file").symlink_to(outside / "secret")
    (top / "in").symlink_to(top / "real")
    (top / "loop").symlink_to(top)
    (top / "self").symlink_to(top / "self")
    (top / "dangling").symlink_to("nowhere")
    scan = scan_cache(tmp_path, TRITON)
    assert scan.files == {"triton/real": 1}
    assert scan.links == 6
    assert scan.warnings == ("6 links, none of them followed",)


def test_a_cache_that_is_itself_a_link_is_an_obstacle(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a")
    (tmp_path / "triton").symlink_to(tmp_path / "elsewhere")
    scan = scan_cache(tmp_path, TRITON)
    assert scan.files == {}
    assert scan.exists
    assert scan.obstacle == f"{tmp_path}/triton is a link to {tmp_path}/elsewhere, which is not followed"
    assert scan.warnings == (scan.obstacle,)


def test_where_a_link_leads_can_always_be_said(tmp_path: Path) -> None:
    (tmp_path / "triton").symlink_to(os.fsdecode(b"/else\xffwhere"))
    assert "/else\\xffwhere" in scan_cache(tmp_path, TRITON).warnings[0]


def test_a_file_in_place_of_a_cache_is_an_obstacle(tmp_path: Path) -> None:
    write(tmp_path / "triton")
    assert scan_cache(tmp_path, TRITON).obstacle == f"{tmp_path}/triton is not a folder"
    assert scan_cache(tmp_path / "triton", TRITON).obstacle is not None, "a file in place of the root"


def test_names_that_are_not_utf8_are_counted_and_said(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "good")
    for name in (b"bad\xfe", b"\xff/inner"):
        write(tmp_path / "triton" / os.fsdecode(name), "123")
    scan = scan_cache(tmp_path, TRITON)
    assert (scan.files, scan.unnameable, scan.size_bytes) == ({"triton/good": 1}, 2, 1)
    assert scan.warnings == ("2 files whose names are not UTF-8, left out",)


def test_pipes_sockets_and_devices_are_no_artifacts(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "good")
    os.mkfifo(tmp_path / "triton" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "triton" / "socket"))
        scan = scan_cache(tmp_path, TRITON)
    assert scan.files == {"triton/good": 1}
    assert scan.warnings == ("2 pipes, sockets or devices, left out",)


@needs_root()
def test_files_of_another_owner_count_and_are_said(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "mine")
    os.chown(write(tmp_path / "triton" / "theirs"), NOBODY, NOBODY)
    scan = scan_cache(tmp_path, TRITON)
    assert len(scan.files) == 2
    assert scan.warnings == ("1 files of another owner",)


@pytest.fixture
def shared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_root()
@pytest.mark.parametrize("mode", [0o700, 0o744, 0o711], ids=["closed", "names only", "no names"])
def test_a_folder_that_may_not_be_read_is_said_and_does_not_stop_the_scan(shared: Path, mode: int) -> None:
    write(shared / "triton" / "open" / "a")
    write(shared / "triton" / "closed" / "b").parent.chmod(mode)
    scan = as_user(NOBODY, lambda: scan_cache(shared, TRITON))
    assert list(scan.files) == ["triton/open/a"]
    assert [warning for warning in scan.warnings if "cannot be read" in warning] == [
        f"{shared}/triton/closed{'/b' if mode == 0o744 else ''} cannot be read"
    ]


@needs_root()
def test_a_root_that_may_not_be_entered_is_an_obstacle(shared: Path) -> None:
    write(shared / "root" / "triton" / "a")
    (shared / "root").chmod(0o700)
    scan = as_user(NOBODY, lambda: scan_cache(shared / "root", TRITON))
    assert scan.obstacle == f"{shared}/root/triton cannot be read: Permission denied"


BUILDER = """
import os, pathlib, shutil, sys
top = pathlib.Path(sys.argv[1])
print("up", flush=True)
while True:
    for number in range(40):
        folder = top / f"tmp.{number}"
        folder.mkdir()
        for name in "abc":
            (folder / name).write_text("x")
    for number in range(40):
        os.rename(top / f"tmp.{number}", top / f"key.{number}")
    for number in range(40):
        shutil.rmtree(top / f"key.{number}")
"""


def test_a_builder_beside_a_scan_is_no_problem(tmp_path: Path) -> None:
    """Files and folders that vanish or are renamed between being listed and being looked at."""
    write(tmp_path / "triton" / "stays")
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "triton")]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as builder:
        assert next_line(builder) == "up"
        seen, until = set(), time.monotonic() + 1.5
        while time.monotonic() < until:
            scan = scan_cache(tmp_path, TRITON)
            assert "triton/stays" in scan.files
            assert scan.warnings == ()
            seen.add(len(scan.files))
        assert builder.poll() is None
    assert len(seen) > 2, "it really was building"


def test_hashes_are_sha256_of_the_content(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "a", "content")
    write(tmp_path / "triton" / "empty", "")
    assert hash_files(tmp_path, ["triton/a", "triton/empty"]) == {
        "triton/a": "sha256:" + hashlib.sha256(b"content").hexdigest(),
        "triton/empty": "sha256:" + hashlib.sha256(b"").hexdigest(),
    }
    assert hash_files(tmp_path, []) == {}


def test_what_cannot_be_hashed_is_left_out_and_never_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "triton" / "a")
    (tmp_path / "triton" / "link").symlink_to(tmp_path / "triton" / "a")
    (tmp_path / "triton" / "folder").mkdir()
    os.mkfifo(tmp_path / "triton" / "pipe")
    found = hash_files(tmp_path, [f"triton/{name}" for name in ("a", "link", "folder", "gone", "pipe")])
    assert set(found) - {"triton/pipe"} == {"triton/a"}


def test_many_files_keep_their_own_hashes(tmp_path: Path) -> None:
    paths = [f"triton/{number}" for number in range(200)]
    for path in paths:
        write(tmp_path / path, path)
    assert hash_files(tmp_path, paths) == {
        path: "sha256:" + hashlib.sha256(path.encode()).hexdigest() for path in paths
    }


def test_an_interrupt_does_not_wait_for_a_file_that_is_being_hashed(tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(1 << 43)
    program = (
        "import pathlib, sys\n"
        "from rayprep.host.interrupts import Interrupts\n"
        "from rayprep.store.scan import hash_files\n"
        "with Interrupts():\n"
        "    print('hashing', flush=True)\n"
        "    hash_files(pathlib.Path(sys.argv[1]), ['endless'])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)) as process:
        assert next_line(process) == "hashing"
        wait_for(lambda: psutil.Process(process.pid).io_counters().read_chars > 50 << 20, "it is being hashed")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) != 0
