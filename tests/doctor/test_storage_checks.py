"""Mounts, from facts, and roots, tried out on real folders."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from rayprep.doctor import mounts
from rayprep.doctor.findings import State
from rayprep.doctor.storage_checks import Space, examine_root, judge_inodes, judge_space, try_out
from tests.doctor.words import FAIL, GIB, OK, WARN

MOUNTS = r"""/dev/vda / ext4 rw,relatime 0 0
server:/export /data nfs4 rw,vers=4.2,local_lock=none 0 0
tmpfs /data/scratch tmpfs rw,noexec 0 0
server:/old /old\040place nfs rw,nolock,vers=3,local_lock=all 0 0
first /twice ext4 rw 0 0
second /twice xfs rw 0 0
"""


class TestMounts:
    @pytest.mark.parametrize(
        ("path", "source"),
        [
            ("/", "/dev/vda"),
            ("/database/x", "/dev/vda"),
            ("/data", "server:/export"),
            ("/data/a/b", "server:/export"),
            ("/data/scratch/a", "tmpfs"),
            ("/old place/x", "server:/old"),
            ("/twice/x", "second"),
        ],
    )
    def test_the_deepest_mount_holds_a_path(self, path: str, source: str) -> None:
        mount = mounts.mount_of(path, mounts.parse_mounts(MOUNTS))
        assert mount is not None
        assert mount.source == source

    def test_no_mount_is_said_and_not_made_up(self) -> None:
        assert mounts.mount_of("/x", mounts.parse_mounts("tmpfs /y tmpfs rw 0 0\n")) is None

    def mount(self, kind: str, *options: str) -> mounts.Mount:
        return mounts.Mount("source", "/point", kind, frozenset({"rw", *options}))

    @pytest.mark.parametrize(
        ("kind", "options", "state"),
        [
            ("ext4", (), OK),
            ("nfs4", ("local_lock=none",), OK),
            ("nfs", ("local_lock=posix",), OK),
            ("nfs", ("local_lock=flock",), WARN),
            ("nfs", ("local_lock=all",), WARN),
            ("nfs", ("nolock",), WARN),
            ("lustre", ("flock",), OK),
            ("lustre", ("localflock",), WARN),
            ("gpfs", (), OK),
            ("fuse.sshfs", (), WARN),
            ("fuse.fuse-overlayfs", (), OK),
            ("virtiofs", (), WARN),
            ("ext4", ("nolock",), OK),
        ],
    )
    def test_locks_that_hold_on_one_host_only(self, kind: str, options: tuple[str, ...], state: State) -> None:
        assert mounts.judge_locks("locks", self.mount(kind, *options), second_taken=False).state is state

    def test_a_lock_that_two_can_hold_fails_whatever_the_file_system(self) -> None:
        for kind in ("ext4", "nfs4"):
            assert mounts.judge_locks("locks", self.mount(kind), second_taken=True).state is FAIL

    @pytest.mark.parametrize(
        ("kind", "options", "libraries", "state"),
        [
            ("ext4", (), True, OK),
            ("ext4", ("noexec",), True, FAIL),
            ("ext4", ("noexec",), False, OK),
            ("overlay", (), True, WARN),
            ("tmpfs", (), True, WARN),
        ],
    )
    def test_what_a_mount_does_to_the_caches(
        self, kind: str, options: tuple[str, ...], libraries: bool, state: State
    ) -> None:
        assert mounts.judge_mount("mount", self.mount(kind, *options), holds_libraries=libraries).state is state


class TestRoots:
    @pytest.mark.parametrize(
        ("free", "state"),
        [(GIB - 1, FAIL), (GIB, WARN), (20 * GIB - 1, WARN), (20 * GIB, OK), (5000 * GIB, OK)],
    )
    def test_space(self, free: int, state: State) -> None:
        assert judge_space("space", Space(free, 10_000 * GIB, 1, 1)).state is state

    @pytest.mark.parametrize(
        ("free", "total", "state"),
        [(999, 1000, FAIL), (4_999, 100_000, WARN), (5_000, 100_000, OK), (0, 0, OK)],
    )
    def test_inodes(self, free: int, total: int, state: State) -> None:
        assert judge_inodes("inodes", Space(GIB, GIB, free, total)).state is state

    def test_a_root_that_is_there_is_tried_and_left_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "kept").touch()
        probe = try_out(tmp_path)
        assert (probe.folder, probe.second_lock_taken) == (tmp_path, False)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    def test_a_root_that_is_not_there_is_not_made(self, tmp_path: Path) -> None:
        root = tmp_path / "a" / "b"
        assert try_out(root).folder == tmp_path
        assert list(tmp_path.iterdir()) == []
        assert "can be made in" in next(examine_root("profiles", root, holds_libraries=True)).message

    def test_a_root_in_a_file_or_behind_a_dead_link_fails_and_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        for root, why in (
            (tmp_path / "file", "Not a directory"),
            (tmp_path / "file" / "below", "Not a directory"),
            (tmp_path / "link", "No such file"),
        ):
            (finding,) = examine_root("profiles", root, holds_libraries=True)
            assert finding.state is FAIL
            assert why in finding.message
            assert str(root) in finding.message

    def test_a_socket_is_no_root(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            (finding,) = examine_root("telemetry", tmp_path / "socket", holds_libraries=False)
        assert finding.state is FAIL


def test_a_root_is_tried_out_through_no_link(tmp_path: Path) -> None:
    """A member of the group renames the probe's folder away, and puts one of theirs there."""
    root, victim, over = tmp_path / "root", tmp_path / "precious", threading.Event()
    root.mkdir()
    victim.write_text("precious", encoding="utf-8")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "lock").symlink_to(victim)

    def swap() -> None:
        while not over.is_set():
            for number, path in enumerate(root.glob(".rayprep-doctor-*")):
                with contextlib.suppress(OSError):
                    path.rename(root / f"away-{number}-{time.monotonic_ns()}")
                    path.symlink_to(tmp_path / "theirs")

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                try_out(root)
    finally:
        over.set()
        attacker.join(30)
    assert victim.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(("mode", "state"), [(0o755, OK), (0o775, OK), (0o777, WARN), (0o1777, WARN)])
def test_who_may_write_to_a_root_is_said(tmp_path: Path, mode: int, state: State) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(mode)
    (finding,) = [each for each in examine_root("profiles", root, holds_libraries=True) if each.check.endswith("trust")]
    assert finding.state is state
    assert ("everybody" in finding.message) == (state is WARN)
