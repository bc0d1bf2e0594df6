"""Clears up after an owner that may die hard: `python -m rayprep.host.sweeper NAME VALUE FOLDER`

Reads the owner's pipe on standard input. When that ends it ends every process whose environment has NAME=VALUE, and
removes FOLDER. A guard owns one tree that it started; this is for processes that others start for us, such as Ray's:
two of Ray's agents outlive a driver that was killed, for as long as they wait for a head that is gone.
"""

import contextlib
import os
import shutil
import stat
import sys

from rayprep.host.process import end_marked, marked_processes

GRACE_S = 2.0


def main(argv: list[str]) -> int:
    name, value, folder = argv
    while os.read(0, 4096):
        pass
    sweep(name, value, folder)
    return 0


def sweep(name: str, value: str, folder: str) -> None:
    """Ends every process whose environment has `name=value`, and removes `folder`."""
    end_marked(lambda: marked_processes(name, value), GRACE_S)
    remove_own(folder)


def remove_own(folder: str) -> None:
    """Removes a folder, if it is this user's and no link. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        status = os.lstat(folder)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
