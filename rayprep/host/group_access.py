"""Makes what a run has left usable for the group: `chmod -R g+rwX`, of this user's own files."""

import contextlib
import os
import stat
from pathlib import Path

from rayprep import umask_for
from rayprep.host.atomic import current_umask

_GROUP = stat.S_IRGRP | stat.S_IWGRP
_ANY_EXECUTE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


def set_umask() -> None:
    """Set the umask of a process that others have started."""
    os.umask(umask_for(current_umask()))


def shares() -> bool:
    """Tell whether the group may use what this process makes."""
    return current_umask() & stat.S_IRWXG != stat.S_IRWXG


def share_with_group(root: Path) -> int:
    """Returns how many files and folders had to be changed. What another user owns, and links, are left alone.

    Libraries make some of their files with mkstemp, whose mode no umask widens. Nothing is changed for a user whose
    umask keeps the group out.
    """
    if not shares():
        return 0
    changed = 0
    own = os.geteuid()
    for _, _, files, folder in os.fwalk(root):
        for name in (".", *files):
            with contextlib.suppress(OSError):  # gone meanwhile
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if found.st_uid == own and (wanted := _shared(found.st_mode)) != stat.S_IMODE(found.st_mode):
                    _change(name, folder, wanted)
                    changed += 1
    return changed


def _shared(mode: int) -> int:
    """`mode` less its file type, with g+rwX. That of a link or a device stays as it is."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return stat.S_IMODE(mode)
    execute = stat.S_IXGRP if stat.S_ISDIR(mode) or mode & _ANY_EXECUTE else 0
    return stat.S_IMODE(mode) | _GROUP | execute


def _change(name: str, folder: int, mode: int) -> None:
    """Not by its name: somebody else in the group could put a link there meanwhile."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        # What has another name may be somebody's private file elsewhere, which a member of the group has linked here.
        if status.st_uid == os.geteuid() and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1):
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
