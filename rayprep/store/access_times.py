"""Which files of a cache were read: told by the access times that the file system keeps.

Linux updates a file's access time at the first read after its last change, also under `relatime` (mount(8)). So the
times are set back before a server starts, and those that have moved when it has ended are the files that it read.
They are set back by no more than that takes: file systems are cleared of what nobody has read for long.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from rayprep.host.owned import OwnedTree, Places

_BEFORE_NS = 10**9
"""A whole second, since some file systems keep no less of a time."""

Times = tuple[int, int]
"""Of the last access and the last change, in nanoseconds."""


class ReadTracker:
    """Follows the reads of some files below `root`. Modification times stay as they are."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self._root = root
        self.works = _keeps_access_times(root)
        with self._places() as places:
            self._set_back = {path: _set_back(*self._at(places, path)) for path in paths} if self.works else {}

    def read_of(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of `paths` that were read, or made, since. All of them where the file system does not tell."""
        with self._places() as places:
            return frozenset(path for path in paths if not self.works or self._was_read(places, path))

    def _was_read(self, places: Places, path: str) -> bool:
        times = _times(*self._at(places, path))
        return times is not None and times != self._set_back.get(path)

    def _places(self) -> Places:
        return Places(OwnedTree(self._root, strict=False))

    def _at(self, places: Places, path: str) -> tuple[str, int | None]:
        """A file's name and its folder, which is reached by no link; none where there is no such folder."""
        folder, _, name = path.rpartition("/")
        try:
            return name, places.folder(f"{self._root}/{folder}")
        except OSError:
            return name, None


def _set_back(name: str, folder: int | None) -> Times | None:
    """The times that the file has now. None where it is not there any more, or another user's: it counts as read."""
    with contextlib.suppress(OSError):
        if times := _times(name, folder):
            os.utime(name, ns=(times[1] - _BEFORE_NS, times[1]), dir_fd=folder, follow_symlinks=False)
            return _times(name, folder)
    return None


def _times(name: str, folder: int | None) -> Times | None:
    if folder is None:
        return None
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return status.st_atime_ns, status.st_mtime_ns


def _keeps_access_times(root: Path) -> bool:
    """Tried out on a file that has no name: `noatime` and some network file systems never move the time."""
    try:
        descriptor = _nameless(root)
    except OSError:
        return False
    try:
        os.pwrite(descriptor, b"x", 0)
        changed = os.fstat(descriptor).st_mtime_ns
        os.utime(descriptor, ns=(changed - _BEFORE_NS, changed))
        before = os.fstat(descriptor).st_atime_ns
        os.pread(descriptor, 1, 0)
        return os.fstat(descriptor).st_atime_ns != before
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _nameless(root: Path) -> int:
    """Open a new file in `root` that nobody else can open, or put something in place of. Raises OSError."""
    with contextlib.suppress(OSError):  # a file system that has none
        return os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with OwnedTree(root, strict=False).folder(root) as folder:
        name = f".reads.{secrets.token_hex(6)}"
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        os.unlink(name, dir_fd=folder)
        return descriptor
