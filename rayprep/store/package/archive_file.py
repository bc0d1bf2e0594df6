"""A package as a file, compressed where its name says so, or as standard input and output."""

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

from rayprep.base.errors import BadRequest, HostUnfit, RayprepError
from rayprep.host.atomic import current_umask
from rayprep.host.layout import os_error_type
from rayprep.host.zstd import compressed, decompressed, most_bytes
from rayprep.store.package.tar_stream import CHUNK, Source

STDIO = "-"
_DRAINED = 4 << 30
"""Bytes that are read of a refused archive, to say whether it is the one that was meant."""


@contextlib.contextmanager
def open_to_read(name: str, sha256: str | None = None) -> Iterator[Source]:
    """A package's tar stream: of the file `name`, through zstd where it ends in `.zst`, or of stdin.

    Args:
        sha256: of the archive as it lies there, `sha256:...`. The stream then ends only where that is so.

    Raises:
        BadRequest: the file cannot be read, or, while it is read, is damaged or has another digest.
        HostUnfit: there is no zstd program.
    """
    with _opened(name) as (file, size):
        archive = _Archive(name, file, sha256)
        try:
            if name.endswith(".zst"):
                with decompressed(archive, size) as stream:
                    yield stream
            else:
                yield archive
        except BadRequest:
            archive.drain()
            raise


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; a pipe has none."""
    if name == STDIO:
        yield sys.stdin.buffer, 0
        return
    try:
        # O_NONBLOCK: nobody may write to what is a pipe.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadRequest(f"package {name} is no plain file", hint=f"give a FILE, or {STDIO} for standard input")
    with os.fdopen(descriptor, "rb") as file:
        yield file, status.st_size


class _Archive:
    """An archive's bytes as they are read, which prove to have their digest at the end."""

    def __init__(self, name: str, file: BinaryIO, sha256: str | None) -> None:
        self._name, self._file, self._expected = name, file, sha256
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end. Raises BadRequest where they cannot be read, or were not those meant."""
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(self._name, error) from None
        if self._expected:
            self._digest.update(data)
            if not data:
                self._check()
        return data

    def drain(self) -> None:
        """Reads the rest, within bounds, where that may show that it is another archive than was meant."""
        left = _DRAINED if self._expected else 0
        while left > 0 and (data := self.read(CHUNK)):
            left -= len(data)

    def _check(self) -> None:
        if (found := f"sha256:{self._digest.hexdigest()}") != self._expected:
            raise BadRequest(
                f"package {self._name} has the digest {found}, not {self._expected}",
                hint="it is not what was packed: copy it again from where you trust it",
            )


class Output:
    """Where an archive goes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = 0
        """Bytes of the archive, before it is compressed."""
        self.digest = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self._stream.write(data)
        self.digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of the archive as it lies there. Ask for it after the block that wrote it."""
        return f"sha256:{self.digest.hexdigest()}"


class _Compressed(Output):
    """Which zstd writes into `file`."""

    def write(self, data: bytes, /) -> None:
        self._stream.write(data)
        self.size += len(data)

    def finish(self, name: str, file: BufferedRandom) -> None:
        """Raises HostUnfit where nobody would take it for a package."""
        if self.size > most_bytes(os.fstat(file.fileno()).st_size):
            raise HostUnfit(
                f"package {name} would be out of proportion to its content, which unpack refuses",
                hint="leave .zst out of --output",
            )
        file.seek(0)
        self.digest = hashlib.file_digest(file, "sha256")


@contextlib.contextmanager
def open_to_write(name: str) -> Iterator[Output]:
    """Becomes the file `name` when the block ends well: compressed where it ends in `.zst`; or stdout.

    Raises:
        BadRequest: the file cannot be made.
        HostUnfit: there is no zstd program, or the disk is full.
    """
    try:
        if name == STDIO:
            yield Output(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with _replaced(name) as out:
                yield out
    except OSError as error:
        raise HostUnfit(
            f"package {name} cannot be written: {error.strerror}",
            hint="free space there, or choose another --output",
            error_type=os_error_type(error),
        ) from None


@contextlib.contextmanager
def _replaced(name: str) -> Iterator[Output]:
    """Beside the file until the block has ended well. Raises as `open_to_write`, and OSError."""
    path = Path(name)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        why = f"package {name} cannot be written: {error.strerror}"
        raise BadRequest(why, hint="choose another --output") from None
    try:
        with os.fdopen(handle, "w+b") as file:
            os.fchmod(file.fileno(), 0o666 & ~current_umask())
            with _written(name, file) as out:
                yield out
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


@contextlib.contextmanager
def _written(name: str, file: BufferedRandom) -> Iterator[Output]:
    if not name.endswith(".zst"):
        yield Output(file)
        return
    with compressed(file) as stream:
        out = _Compressed(stream)
        yield out
    out.finish(name, file)


def _unreadable(name: str, error: OSError | ValueError) -> RayprepError:
    why = error.strerror if isinstance(error, OSError) else error
    return BadRequest(f"package {name} cannot be read: {why}", hint="give another FILE")
