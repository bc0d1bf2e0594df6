"""Which files of a cache were read: told by the access times that the file system keeps.

Linux updates a file's access time at the first read after its last change, also under `relatime` (mount(8)). So the
times are set back before a server starts, and those that have moved when it has ended are the files that it read.
They are set back by no more than that takes: file systems are cleared of what nobody has read for long.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

_BEFORE_NS = 10**9
"""A whole second, since some file systems keep no less of a time."""

Times = tuple[int, int]
"""Of the last access and the last change, in nanoseconds."""


class ReadTracker:
    """Follows the reads of some files below `root`. Modification times stay as they are."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self._root = root
        self.works = _keeps_access_times(root)
        self._set_back = {path: _set_back(root / path) for path in paths} if self.works else {}

    def read_of(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of `paths` that were read, or made, since. All of them where the file system does not tell."""
        return frozenset(path for path in paths if not self.works or self._was_read(path))

    def _was_read(self, path: str) -> bool:
        times = _times(self._root / path)
        return times is not None and times != self._set_back.get(path)


def _set_back(path: Path) -> Times | None:
    """The times that the file has now. None where it is not there any more, or another user's: it counts as read."""
    with contextlib.suppress(OSError):
        changed = path.lstat().st_mtime_ns
        os.utime(path, ns=(changed - _BEFORE_NS, changed), follow_symlinks=False)
        return _times(path)
    return None


def _times(path: Path) -> Times | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_atime_ns, status.st_mtime_ns


def _keeps_access_times(root: Path) -> bool:
    """Tried out on a file of our own: `noatime` and some network file systems never move the time."""
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".reads.") as probe:
            path = Path(probe.name)
            path.write_text("x", encoding="utf-8")
            before = _set_back(path)
            path.read_text(encoding="utf-8")
            return _times(path) != before
    except OSError:
        return False
