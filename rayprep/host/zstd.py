"""The zstd program as a filter, within bounds of its memory and of what it makes of little."""

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

from rayprep.base.errors import BadRequest, HostUnfit
from rayprep.base.text import one_line
from rayprep.host.environment import passed_on

END_TIMEOUT_S = 600.0
"""For zstd to write what it still holds, once everything was handed to it."""
_PIECE = 1 << 18
_MEMORY = 128 << 20
"""Bytes that zstd may take to read an archive, whatever the archive asks for."""
_WINDOW = "--memory=32MiB"
"""As much of its own output zstd looks back on. `zstd -19` needs 8 MiB."""
_MOST_TIMES, _ALWAYS = 200, 256 << 20
"""What a real cache compresses to: a tenth; thousands of empty files: a thirtieth."""


def most_bytes(compressed: int) -> int:
    """How many bytes an archive may have that takes `compressed` of them."""
    return _ALWAYS + _MOST_TIMES * compressed


class Source(Protocol):
    def read(self, size: int, /) -> bytes | memoryview: ...


class Decompressed:
    """What zstd makes of a source, which a thread hands to it."""

    def __init__(self, source: Source, compressed: int) -> None:
        self._source, self._left = source, most_bytes(compressed)
        # Ends by itself if we are killed: its input ends, and nobody reads what it writes.
        self._process = _start(["-dc", _WINDOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _limit_memory(self._process.pid)
        self._failed: Exception | None = None
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end.

        Raises:
            BadRequest: the source is damaged, or its content is out of proportion.
        """
        data = cast(BinaryIO, self._process.stdout).read(size)
        self._left -= len(data)
        if self._left < 0:
            raise BadRequest(
                f"the package is refused: it has more than {_MOST_TIMES} times the bytes that it takes compressed",
                hint="pack it again without .zst",
            )
        if not data:
            self._finish()
        return data

    def close(self) -> None:
        """Ends zstd, and with it the reading of the source."""
        self._process.kill()
        self._feeder.join()
        _end(self._process)

    def _feed(self) -> None:
        stdin = cast(BinaryIO, self._process.stdin)
        try:
            while data := self._source.read(_PIECE):
                stdin.write(data)
            stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and says why
        except Exception as error:  # noqa: BLE001 - whoever reads has it
            self._failed = error
            self._process.kill()

    def _finish(self) -> None:
        self._feeder.join()
        if self._failed is not None:
            raise self._failed
        if self._process.wait(END_TIMEOUT_S) != 0:
            raise BadRequest(
                f"the package is refused: it ends too early or is damaged: zstd: {_last_words(self._process)}",
                hint="pack it again, and copy it whole",
            )


@contextlib.contextmanager
def decompressed(source: Source, compressed: int) -> Iterator[Decompressed]:
    """Reads a source of so many bytes through zstd. Raises HostUnfit where there is no zstd program."""
    stream = Decompressed(source, compressed)
    try:
        yield stream
    finally:
        stream.close()


@contextlib.contextmanager
def compressed(file: BinaryIO) -> Iterator[BinaryIO]:
    """A stream that zstd writes to `file`, whole when the block ends well. Raises HostUnfit where zstd fails."""
    # Ends by itself if we are killed: its input ends.
    process = _start(["-c", "-T0"], stdin=subprocess.PIPE, stdout=file)
    assert process.stdin is not None
    try:
        broken = False
        try:
            yield process.stdin  # type: ignore[misc]
            process.stdin.close()
        except BrokenPipeError:
            broken = True  # it has ended, and says why
        if process.wait(END_TIMEOUT_S) != 0 or broken:
            raise HostUnfit(f"zstd failed: {_last_words(process)}")
    finally:
        _end(process)


def _start(arguments: list[str], stdin: int, stdout: int | BinaryIO) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["zstd", "-q", *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=passed_on(os.environ)
        )
    except OSError as error:
        raise HostUnfit(
            f"the zstd program cannot be started: {error.strerror}", hint="install zstd, or leave .zst out"
        ) from None


def _limit_memory(pid: int) -> None:
    """Before it has read anything. `zstd` also reads xz, whose window its own bound does not hold for."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
    most = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def _last_words(process: subprocess.Popen[bytes]) -> str:
    said = cast(BinaryIO, process.stderr).read(1 << 12).decode(errors="backslashreplace")
    return one_line(said) or f"ended with {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
