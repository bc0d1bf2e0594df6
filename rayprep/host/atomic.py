"""Files that others read are never seen half written."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

_ABANDONED_S = 3600.0
"""No writing takes that long: its temporary file is a killed writer's."""


def write_text(path: Path, text: str, changed_at: float | None = None) -> None:
    """As `write_bytes`, in UTF-8. Raises OSError."""
    write_bytes(path, text.encode(), changed_at)


def write_bytes(path: Path, data: bytes, changed_at: float | None = None) -> None:
    """Writes a temporary file beside `path`, syncs it, renames it over `path`, and syncs the folder.

    Its name is this writer's own, so that several can write `path` at once: the last one stays. What killed writers
    left beside it goes, once it is old. The folder must exist. The file gets mode 0666 less the umask, as a plain open
    would give it.

    Args:
        changed_at: its time of change, in seconds since the epoch, where that is not to be now. It has it from the
            moment that it is there.

    Raises:
        OSError: the file cannot be written; `path` is then as it was, and no temporary file is left.
    """
    _sweep(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~current_umask())
            if changed_at is not None:
                os.utime(file.fileno(), (changed_at, changed_at))
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sweep(path: Path) -> None:
    with contextlib.suppress(OSError), os.scandir(path.parent) as found:
        for each in found:
            ours = each.name.startswith(f".{path.name}.") and each.name.endswith(".tmp")
            if ours and each.stat(follow_symlinks=False).st_mtime < time.time() - _ABANDONED_S:
                Path(each.path).unlink()


def current_umask() -> int:
    """The umask, read without changing it, so that no other thread ever sees another one.

    Source: proc_pid_status(5), the `Umask` field, in octal.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise OSError("/proc/self/status has no Umask line")
