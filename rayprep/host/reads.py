"""Which files of a cache were read: told by the access times that the file system keeps.

Linux updates a file's access time at the first read after its last change, also under `relatime` (mount(8)). So the
times are set back before a server starts, and those that have moved when it has ended are the files that it read.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

_LONG_AGO_NS = 10**18
"""Autumn 2001: before any file of ours."""


class ReadTracker:
    """Follows the reads of some files below `root`. Modification times stay as they are."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self._root = root
        self.works = _keeps_access_times(root)
        if self.works:
            for path in paths:
                _set_back(root / path)

    def read_of(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of `paths` that were read, or made, since. All of them where the file system does not tell."""
        return frozenset(path for path in paths if not self.works or _was_read(self._root / path))


def _set_back(path: Path) -> None:
    # Not there any more, or another user's: it then counts as read.
    with contextlib.suppress(OSError):
        os.utime(path, ns=(_LONG_AGO_NS, path.lstat().st_mtime_ns), follow_symlinks=False)


def _was_read(path: Path) -> bool:
    try:
        return path.lstat().st_atime_ns > _LONG_AGO_NS
    except OSError:
        return False


def _keeps_access_times(root: Path) -> bool:
    """Tried out on a file of our own: `noatime` and some network file systems never move the time."""
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".reads.") as probe:
            path = Path(probe.name)
            path.write_text("x", encoding="utf-8")
            _set_back(path)
            path.read_text(encoding="utf-8")
            return _was_read(path)
    except OSError:
        return False
