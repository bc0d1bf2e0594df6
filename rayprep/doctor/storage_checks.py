"""The two roots: can they be written, do locks hold there, and is there room?"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from rayprep.base.human import gib
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.mounts import Mount, judge_locks, judge_mount, mount_of, parse_mounts
from rayprep.doctor.subject import Checks, Subject
from rayprep.host.files import open_file
from rayprep.host.owned import OwnedTree, open_to_all, trusted, why_strange

_SCARCE_BYTES = 20 << 30
_TOO_LITTLE_BYTES = 1 << 30
_SCARCE_INODES = 0.05
_TOO_FEW_INODES = 1000
"""One cold start of one model writes some hundred files."""
_PROBE_BYTES = 4096


@dataclass(frozen=True)
class Space:
    """What statvfs(2) says, for a user who is not root."""

    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int
    """0 where the file system does not count them."""


def judge_space(check: str, space: Space) -> Finding:
    found = f"{gib(space.free_bytes)} of {gib(space.total_bytes)} free"
    if space.free_bytes < _TOO_LITTLE_BYTES:
        return fail(check, found, "free at least 20 GiB (`rayprep reset` helps), or choose another root")
    if space.free_bytes < _SCARCE_BYTES:
        return warn(check, f"{found}; the caches of some models are larger", "free at least 20 GiB there")
    return ok(check, found)


def judge_inodes(check: str, space: Space) -> Finding:
    if not space.total_inodes:
        return ok(check, "not counted by this file system")
    share = space.free_inodes / space.total_inodes
    found = f"{space.free_inodes} of {space.total_inodes} free ({share:.0%})"
    remedy = "remove files there (`du --inodes` says where they are), or choose another root"
    if space.free_inodes < _TOO_FEW_INODES:
        return fail(check, found, remedy)
    return warn(check, found, remedy) if share < _SCARCE_INODES else ok(check, found)


@dataclass(frozen=True)
class Probe:
    """What came of using a root."""

    folder: Path
    """The root, or the nearest folder above it that is there."""
    second_lock_taken: bool


def try_out(root: Path) -> Probe:
    """Makes a folder and a file where the root is or would be made, locks the file twice, and removes both.

    The root itself is not made: the doctor leaves nothing behind, and a run that begins meanwhile may make it.

    Raises:
        OSError: one of that is refused.
    """
    folder = nearest_folder(root)
    next(os.scandir(folder), None)  # a folder full of errors can be written, and not listed
    with OwnedTree(folder, strict=False).folder(folder) as top:
        probe = f".rayprep-doctor-{secrets.token_hex(6)}"
        os.mkdir(probe, 0o700, dir_fd=top)
        try:
            # Others may write to the root: what has the name by now could be somebody else's, or a link.
            inner = os.open(probe, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                if stranger := why_strange(inner):
                    raise PermissionError(errno.EPERM, stranger, f"{folder}/{probe}")
                return Probe(folder, second_lock_taken=_lock_twice(inner, f"{folder}/{probe}"))
            finally:
                os.close(inner)
        finally:
            os.rmdir(probe, dir_fd=top)


def _lock_twice(folder: int, place: str) -> bool:
    """Whether a second lock can be taken on a file that is locked. The file is made, and removed."""
    with contextlib.ExitStack() as stack:
        first = os.open("lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        stack.callback(os.close, first)
        stack.callback(os.unlink, "lock", dir_fd=folder)
        # Written to the disk: a quota or a full disk is often not said before.
        os.write(first, bytes(_PROBE_BYTES))
        os.fsync(first)
        second = open_file("lock", os.O_RDONLY | os.O_NOFOLLOW, folder=folder)
        stack.callback(os.close, second)
        if not lock_descriptor(first, blocking=False):
            raise BlockingIOError(f"nobody holds the lock on {place}/lock, and it cannot be taken")
        return lock_descriptor(second, blocking=False)


def nearest_folder(root: Path) -> Path:
    """The root, or the first of its parents that is there.

    Raises:
        OSError: something is there and cannot be looked at, or is no folder: a stale NFS handle is not an absence.
    """
    for path in (root, *root.parents):
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        next(os.scandir(path), None)
        return path
    raise FileNotFoundError(f"none of the folders above {root} is there")


def read_space(folder: Path) -> Space:
    stat = os.statvfs(folder)
    return Space(stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize, stat.f_favail, stat.f_files)


def read_mount(folder: Path) -> Mount:
    """
    Raises:
        OSError: /proc/mounts cannot be read, or names no mount for the folder.
    """
    mounts = parse_mounts(os.fsdecode(Path("/proc/self/mounts").read_bytes()))
    mount = mount_of(os.path.realpath(folder), mounts)
    if mount is None:
        raise FileNotFoundError(f"/proc/self/mounts names no mount that holds {folder}")
    return mount


def examine_root(what: str, root: Path, *, holds_libraries: bool) -> Iterator[Finding]:
    """All findings on one root."""
    try:
        probe = try_out(root)
    except OSError as error:
        remedy = f"mend it (chown, chmod, mount), or choose another --{what}-root"
        yield fail(f"{what} root", f"{root} cannot be used: {error.strerror or error}", remedy)
        return
    there = "can be written" if probe.folder == root else f"is not there yet, and can be made in {probe.folder}"
    yield ok(f"{what} root", f"{root} {there}")
    yield judge_trust(f"{what} trust", root if root.is_dir() else probe.folder, open_to_all(root))
    mount, space = read_mount(probe.folder), read_space(probe.folder)
    yield judge_mount(f"{what} mount", mount, holds_libraries=holds_libraries)
    yield judge_locks(f"{what} locks", mount, probe.second_lock_taken)
    yield judge_space(f"{what} space", space)
    yield judge_inodes(f"{what} inodes", space)


def judge_trust(check: str, folder: Path, open_folders: Sequence[Path]) -> Finding:
    """Who may write there decides which code a server loads. Raises OSError where the folder has gone."""
    if open_folders:
        named = ", ".join(map(str, open_folders))
        remedy = "chmod o-w there, or choose another root: servers run the code that lies in their caches"
        return warn(check, f"everybody on this host may write to {named}", remedy)
    return ok(check, f"{trusted(folder)} may write there, and nobody else")


def _profiles(subject: Subject) -> Iterator[Finding]:
    return examine_root("profiles", subject.layout.profiles, holds_libraries=True)


def _telemetry(subject: Subject) -> Iterator[Finding]:
    return examine_root("telemetry", subject.layout.telemetry, holds_libraries=False)


CHECKS: Checks = {"profiles root": _profiles, "telemetry root": _telemetry}
