"""A package as a file, compressed where its name says so, or as standard input and output."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from rayprep.host.atomic import current_umask
from rayprep.host.environment import passed_on
from rayprep.host.layout import os_error_type
from rayprep.model.errors import BadRequest, HostUnfit

STDIO = "-"
END_TIMEOUT_S = 600.0
"""For zstd to write what it still holds, once everything was handed to it."""


@contextlib.contextmanager
def open_to_read(name: str) -> Iterator[BinaryIO]:
    """A package's tar stream: of the file `name`, through zstd where it ends in `.zst`, or of stdin.

    Raises:
        BadRequest: the file cannot be read.
        HostUnfit: there is no zstd program.
    """
    if name == STDIO:
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below, where an error is the reader's and not this one's
    except OSError as error:
        raise BadRequest(f"package {name} cannot be read: {error.strerror}", hint="give another FILE") from None
    with file:
        if not name.endswith(".zst"):
            yield file
            return
        # Ends by itself if we are killed: nobody reads what it writes.
        process = _zstd(["-dc"], stdin=file, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            yield process.stdout  # type: ignore[misc]
        finally:
            _end(process)


@contextlib.contextmanager
def open_to_write(name: str) -> Iterator[BinaryIO]:
    """A stream that becomes the file `name` when the block ends well: compressed where it ends in `.zst`; or stdout.

    Raises:
        BadRequest: the file cannot be made.
        HostUnfit: there is no zstd program, or the disk is full.
    """
    try:
        if name == STDIO:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        else:
            with _replaced(name) as stream:
                yield stream
    except OSError as error:
        raise HostUnfit(
            f"package {name} cannot be written: {error.strerror}",
            hint="free space there, or choose another --output",
            error_type=os_error_type(error),
        ) from None


@contextlib.contextmanager
def _replaced(name: str) -> Iterator[BinaryIO]:
    """Beside the file until the block has ended well. Raises as `open_to_write`, and OSError."""
    path = Path(name)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        why = f"package {name} cannot be written: {error.strerror}"
        raise BadRequest(why, hint="choose another --output") from None
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~current_umask())
            with _compressed(file) if name.endswith(".zst") else contextlib.nullcontext(file) as stream:
                yield stream
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


@contextlib.contextmanager
def _compressed(file: BinaryIO) -> Iterator[BinaryIO]:
    # Ends by itself if we are killed: its input ends.
    process = _zstd(["-c", "-T0"], stdin=subprocess.PIPE, stdout=file)
    assert process.stdin is not None
    try:
        broken = False
        try:
            yield process.stdin  # type: ignore[misc]
            process.stdin.close()
        except BrokenPipeError:
            broken = True  # it has ended, and says why
        if process.wait(END_TIMEOUT_S) != 0 or broken:
            assert process.stderr is not None
            raise HostUnfit(f"zstd failed: {process.stderr.read().decode(errors='backslashreplace').strip()}")
    finally:
        _end(process)


def _zstd(
    arguments: list[str], stdin: int | BinaryIO | IO[bytes], stdout: int | BinaryIO | IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["zstd", "-q", *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=passed_on(os.environ)
        )
    except OSError as error:
        raise HostUnfit(
            f"the zstd program cannot be started: {error.strerror}", hint="install zstd, or leave .zst out"
        ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
