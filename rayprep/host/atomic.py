"""Files that others read are never seen half written."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from rayprep.host.files import read_text

_ABANDONED_S = 3600.0
"""No writing takes that long: its temporary file is a killed writer's."""


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8. Raises OSError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that the user named, wherever it lies, as `write_in` does. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_in(folder, path.name, data)
    finally:
        os.close(folder)


def write_in(folder: int, name: str, data: bytes, changed_at: float | None = None) -> None:
    """Write a temporary file beside `name`, sync it, rename it over `name`, and sync the folder.

    The temporary file's name is this writer's own, so that several can write at once: the last one stays. What killed
    writers left beside it goes, once it is old. The file gets mode 0666 less the umask, as a plain open would give it.

    Args:
        folder: the folder's descriptor, through which all is done.
        changed_at: its time of change, in seconds since the epoch, where that is not to be now. It has it from the
            moment that it is there.

    Raises:
        OSError: the file cannot be written; it is then as it was, and no temporary file is left.
    """
    _sweep(folder, name)
    temporary = f".{name}.{secrets.token_hex(6)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if changed_at is not None:
                os.utime(file.fileno(), (changed_at, changed_at))
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _sweep(folder: int, name: str) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            ours = entry.name.startswith(f".{name}.") and entry.name.endswith(".tmp")
            if ours and entry.stat(follow_symlinks=False).st_mtime < time.time() - _ABANDONED_S:
                os.unlink(entry.name, dir_fd=folder)


def current_umask() -> int:
    """Read the umask without changing it, so that no other thread ever sees another one.

    Source: proc_pid_status(5), the `Umask` field, in octal.
    """
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise OSError("/proc/self/status has no Umask line")
