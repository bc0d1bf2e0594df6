"""Following a log file that another process writes, however fast and in whatever encoding."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from rayprep.base.secrets import redacted_text
from rayprep.host.layout import open_in_run

_CHUNK = 1 << 20
_LONGEST = 1 << 16
"""Bytes of a line that has no end yet; longer ones are heard in parts."""
_BREAK = re.compile(rb"[\r\n]+")


class LogFollower:
    """Hands the lines that a log has grown by to `hear`; the pieces of a progress bar are lines, too.

    A secret in them is overwritten where it stands: SGLang prints its arguments, and the log is for others to read.
    """

    def __init__(self, log: Path, hear: Callable[[str], None]) -> None:
        self._log, self._hear = log, hear
        self._offset = _size(log)  # what an earlier attempt said is not this one's
        self._rest = b""

    def follow(self) -> bool:
        """Hears at most one megabyte. Returns whether there is more already."""
        try:
            with os.fdopen(open_in_run(self._log, os.O_RDONLY), "rb") as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK)
        except FileNotFoundError:
            return False
        self._offset += len(chunk)
        self._blot(self._rest + chunk)
        *lines, self._rest = _BREAK.split(self._rest + chunk)
        if len(self._rest) > _LONGEST:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._hear(line.decode(errors="replace"))
        return len(chunk) == _CHUNK

    def _blot(self, data: bytes) -> None:
        """Whoever writes the log appends to it, so that what is overwritten stays so."""
        text = data.decode("latin-1")  # a character a byte
        shown = redacted_text(text, lambda secret: "*" * len(secret))
        if shown != text:
            with contextlib.suppress(OSError), os.fdopen(open_in_run(self._log, os.O_RDWR), "r+b") as file:
                file.seek(self._offset - len(data))
                file.write(shown.encode("latin-1"))

    def finish(self) -> None:
        """Hears the end of a log that nobody writes any more: its last megabyte, where it is far ahead."""
        last = _size(self._log) - _CHUNK
        if self._offset < last:
            self._offset, self._rest = last, b""
        while self.follow():
            pass
        self._hear(self._rest.decode(errors="replace"))
        self._rest = b""


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0
