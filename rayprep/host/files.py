"""Reads files that anybody may have put there: regular ones alone, without waiting for one, up to a bound.

A pipe in the place of a file holds up whoever opens it, and a device has no end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_BYTES = 64 << 20
"""More than any file that is read whole: a completion of a hundred thousand files has about 20 MB."""

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def read_bytes(path: Path | str, most: int = LARGEST_BYTES) -> bytes:
    """Read a whole file, through links where there are any.

    Raises:
        OSError: it cannot be read, is no regular file (EINVAL), or has more than `most` bytes (EFBIG).
    """
    descriptor = open_file(path, os.O_RDONLY)
    try:
        return read_whole(descriptor, str(path), most)
    finally:
        os.close(descriptor)


def read_text(path: Path | str, most: int = LARGEST_BYTES) -> str:
    """As `read_bytes`, in UTF-8. Raises UnicodeDecodeError, too."""
    return read_bytes(path, most).decode()


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to it, or make it in its folder. It is neither a link nor somebody's pipe.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    return os.fdopen(open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW), "ab")


def read_end(path: Path | str, most: int = 8192, *, folder: int | None = None) -> str:
    """Read the last `most` bytes of a log that is no link. Raises OSError."""
    descriptor = open_file(path, os.O_RDONLY | os.O_NOFOLLOW, folder=folder)
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, most, max(0, size - most)).decode(errors="replace")
    finally:
        os.close(descriptor)


def open_file(path: Path | str, flags: int, *, folder: int | None = None, mode: int = 0o666) -> int:
    """Open a regular file, or make one where `flags` say so. Returns its descriptor.

    Args:
        folder: the descriptor of the folder that `path` is relative to.

    Raises:
        OSError: it cannot be opened, or is no regular file (EINVAL); or it is to be written and has another name,
            under which it is somebody else's (EMLINK).
    """
    follow = not flags & os.O_NOFOLLOW
    try:
        # A device is not opened at all: that alone may do something.
        refuse_special(os.stat(path, dir_fd=folder, follow_symlinks=follow), str(path))
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | _FLAGS, mode, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        refuse_special(status, str(path))
        if flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
            raise OSError(errno.EMLINK, "it has another name elsewhere (a hard link)", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def refuse_special(status: os.stat_result, name: str) -> None:
    """Raise OSError for whatever is no regular file."""
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a link, which is not followed", name)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", name)


def read_whole(descriptor: int, name: str, most: int = LARGEST_BYTES) -> bytes:
    """Read an open file from its start, `most` bytes of it at most. Raises OSError (EFBIG) where it has more."""
    parts, left = [], most + 1
    while left and (part := os.pread(descriptor, min(left, 1 << 20), most + 1 - left)):
        parts.append(part)
        left -= len(part)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", name)
    return b"".join(parts)
