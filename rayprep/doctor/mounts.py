"""What a root is mounted from, and what that means for locks, for libraries and for the life of the caches."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from rayprep.doctor.findings import Finding, fail, ok, warn

_NETWORK = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "afs", "9p", "virtiofs"}
)
_PASSING = {"overlay": "container", "fuse.fuse-overlayfs": "container", "tmpfs": "boot", "ramfs": "boot"}
"""File systems whose files go with the container, or with the next boot."""
_LOCAL_LOCKS = frozenset({"nolock", "local_lock=flock", "local_lock=all", "localflock", "nobrl"})
"""Options of NFS, Lustre and CIFS under which flock(2) is answered by this host's kernel alone."""
_UNSAID_LOCKS = frozenset({"9p", "virtiofs"})
"""They pass locks on or not, as they were started; the mount does not say. FUSE, too."""
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs"})


@dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    source: str
    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_network(self) -> bool:
        """Whether other hosts can see the same files."""
        return self.kind in _NETWORK or self.is_foreign_fuse

    @property
    def is_foreign_fuse(self) -> bool:
        """A FUSE file system that may lead to another host, as most of them do."""
        return self.kind.partition(".")[0] == "fuse" and self.kind not in _LOCAL_FUSE

    def __str__(self) -> str:
        return f"{self.kind} {self.source} on {self.point}"


def parse_mounts(text: str) -> list[Mount]:
    """The lines of /proc/mounts, in their order."""
    fields = [line.split(" ") for line in text.splitlines() if line.count(" ") >= 3]
    return [
        Mount(_unescaped(source), _unescaped(point), kind, frozenset(options.split(",")))
        for source, point, kind, options, *_ in fields
    ]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that an absolute path without links lies on: the deepest, and of two in one place the later."""
    at = PurePath(path)
    holding = [mount for mount in mounts if at.is_relative_to(mount.point)]
    # max() keeps the first of equals.
    return max(reversed(holding), key=lambda mount: len(PurePath(mount.point).parts), default=None)


def judge_mount(check: str, mount: Mount, *, holds_libraries: bool) -> Finding:
    """
    Args:
        holds_libraries: shared libraries are loaded from there.
    """
    if holds_libraries and "noexec" in mount.options:
        remedy = f"mount -o remount,exec {mount.point}, or choose another root"
        return fail(check, f"{mount}, noexec: no compiled kernel can be loaded from there", remedy)
    life = _PASSING.get(mount.kind)
    if life:
        what = "lasts no longer than this container" if life == "container" else "is lost at the next boot"
        return warn(check, f"{mount}: what is written there {what}", "mount a volume there, or choose another root")
    return ok(check, f"{mount}{', which other hosts may share' if mount.is_network else ''}")


def judge_locks(check: str, mount: Mount, second_taken: bool) -> Finding:
    """
    Args:
        second_taken: a second open file got the lock that the first still held.
    """
    if second_taken:
        remedy = "mount it with working flock (Lustre: -o flock; NFS: run lockd), or choose another root"
        return fail(check, f"flock on {mount} is not real: two holders at once", remedy)
    alone = "prepare this root from one host at a time"
    local = sorted(mount.options & _LOCAL_LOCKS) if mount.is_network else []
    if local:
        remedy = f"remount without it, or {alone}"
        return warn(check, f"{mount}, {', '.join(local)}: a lock holds on this host only", remedy)
    if mount.kind in _UNSAID_LOCKS or mount.is_foreign_fuse:
        return warn(check, f"flock works on {mount}, but may hold on this host only", alone)
    return ok(check, f"flock works on {mount.kind}")
