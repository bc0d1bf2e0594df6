"""The tar stream of a package, written and read member by member.

GNU tar's format, without links, folders or anything else than plain files. The reader knows from the manifest which
file has to come next and takes nothing else, so an archive can neither place nor announce what was not checked.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Protocol

from rayprep.base.errors import BadRequest
from rayprep.base.records import encodable
from rayprep.store.package.manifest import (
    LARGEST_MANIFEST,
    MANIFEST_NAME,
    PackageManifest,
    PackedFile,
    check_manifest,
    parse_manifest,
)

CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_NAME = 1 << 11
_LONGEST_PADDING = 1 << 20
_OWNER = b"0000000\0" * 2
_END_OF_HEADER = bytes(100) + tarfile.GNU_MAGIC.ljust(255, b"\0")
_END_SUM = sum(_END_OF_HEADER)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.XHDTYPE: "an extended header",
    tarfile.XGLTYPE: "an extended header",
}


def header(name: str, size: int, mtime_ns: int = 0) -> bytes:
    """The blocks before a member's content, byte for byte as tarfile makes them, which takes ten times as long."""
    encoded = name.encode()
    block = _header_block(encoded, 0o664, size, max(0, mtime_ns) // 10**9, tarfile.REGTYPE)
    if len(encoded) <= tarfile.LENGTH_NAME:
        return block
    content = encoded + b"\0"
    before = _header_block(b"././@LongLink", 0, len(content), 0, tarfile.GNUTYPE_LONGNAME)
    return before + content + padding(len(content)) + block


def _header_block(name: bytes, mode: int, size: int, mtime: int, kind: bytes) -> bytes:
    fields = b"%b%07o\0%b%b%b" % (name[:100].ljust(100, b"\0"), mode, _OWNER, _number(size), _number(mtime))
    # The checksum counts its own eight bytes as spaces.
    checksum = sum(fields) + 8 * ord(" ") + ord(kind) + _END_SUM
    return b"%b%06o\0 %b%b" % (fields, checksum, kind, _END_OF_HEADER)


def _number(value: int) -> bytes:
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")


def padding(size: int) -> bytes:
    """The zeros after `size` bytes of content."""
    return bytes(-size % _BLOCK)


def member_size(file: PackedFile) -> int:
    """How many bytes of the archive it takes."""
    return len(header(file.path, file.size, file.mtime_ns)) + file.size + -file.size % _BLOCK


END = bytes(2 * _BLOCK)


class Source(Protocol):
    """Where a package comes from: a file, or whatever gives bytes in the same way."""

    def read(self, size: int, /) -> bytes | memoryview:
        """The next bytes, about `size` of them; none at the end."""


class PackageReader:
    """Reads a package once, from front to back. Everything that it gives out has been checked.

    Raises, in each method, BadRequest where the archive ends too early or holds something else than it must.
    """

    def __init__(self, stream: Source) -> None:
        self._stream = stream
        self._ahead = memoryview(b"")
        """Read from the stream, and not taken yet."""
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> PackageManifest:
        info = self._next_member()
        if info.name != MANIFEST_NAME or info.type != tarfile.REGTYPE:
            raise _refused(f"its first member is {info.name}, not {MANIFEST_NAME}")
        if info.size > LARGEST_MANIFEST:
            raise _refused(f"its manifest has {info.size} bytes, {LARGEST_MANIFEST} are the most")
        # Nothing here holds the text while it is parsed.
        manifest = parse_manifest(b"".join(self._content(info.size)))
        self._exactly(-info.size % _BLOCK)
        check_manifest(manifest)
        return manifest

    def copy(self, file: PackedFile, write: Callable[[memoryview], object]) -> None:
        """Reads the next file, which has to be `file`, and hands its content to `write`, in pieces."""
        self._take_header(file)
        digest = hashlib.sha256()
        left = file.size
        while left:
            chunk = self._some(left)
            digest.update(chunk)
            write(chunk)
            left -= len(chunk)
        self._exactly(-file.size % _BLOCK)
        if f"sha256:{digest.hexdigest()}" != file.sha256:
            raise _refused(f"the content of {file.path} is not what its manifest says")

    def _content(self, size: int) -> Iterator[memoryview]:
        """As much of the stream, in whatever pieces it comes."""
        while size:
            chunk = self._some(size)
            yield chunk
            size -= len(chunk)

    def _some(self, most: int) -> memoryview:
        """Read what comes next, and no more than `most`."""
        self._fill(1)
        chunk = self._take(most)
        if not chunk:
            raise _refused("it ends too early")
        return chunk

    def _take_header(self, file: PackedFile) -> None:
        expected = header(file.path, file.size, file.mtime_ns)
        self._fill(len(expected))
        if bytes(self._ahead[: len(expected)]) == expected:  # as `pack` writes it: there is nothing to take apart
            self._take(len(expected))
            return
        info = self._next_member()
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise _refused(f"{info.name} is {_KINDS.get(info.type, 'of a kind')} that is not packed")
        if info.name != file.path:
            raise _refused(f"it holds {info.name} where its manifest has {file.path}")
        if info.size != file.size:
            raise _refused(f"{file.path} has {info.size} bytes, its manifest says {file.size}")

    def end(self) -> None:
        """Nothing may follow the last file but zeros, and at least one block of them."""
        self._fill(_LONGEST_PADDING)
        rest = self._exactly(max(_BLOCK, len(self._ahead)))
        if any(rest) or len(rest) >= _LONGEST_PADDING:
            raise _refused("more follows than its manifest says")

    def _next_member(self) -> tarfile.TarInfo:
        info = self._one_header()
        if info.type != tarfile.GNUTYPE_LONGNAME:
            return info
        if info.size > _LONGEST_NAME:
            raise _refused(f"a name in it has {info.size} bytes")
        name = bytes(self._exactly(info.size)).rstrip(b"\0").decode(errors="backslashreplace")
        self._exactly(-info.size % _BLOCK)
        info = self._one_header()
        info.name = name
        return info

    def _one_header(self) -> tarfile.TarInfo:
        block = bytes(self._exactly(_BLOCK))
        if not any(block):
            raise _refused("it ends too early")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except (tarfile.HeaderError, ValueError) as error:
            raise _refused(f"it is no tar archive: {error}") from None
        if info.size < 0:
            raise _refused(f"{info.name} has {info.size} bytes")
        return info

    def _exactly(self, size: int) -> memoryview:
        self._fill(size)
        found = self._take(size)
        if len(found) < size:
            raise _refused("it ends too early")
        return found

    def _take(self, most: int) -> memoryview:
        """What is read already, and no more than `most`."""
        found, self._ahead = self._ahead[:most], self._ahead[most:]
        return found

    def _fill(self, size: int) -> None:
        """Reads ahead until there are `size` bytes, or the stream has ended."""
        if len(self._ahead) >= size:
            return
        parts, have = [self._ahead], len(self._ahead)
        while have < size and (part := self._stream.read(CHUNK)):  # a socket gives what it has
            parts.append(memoryview(part))
            have += len(part)
        self._ahead = parts[-1] if len(parts) < 3 and not parts[0] else memoryview(b"".join(parts))


def _refused(why: str) -> BadRequest:
    return BadRequest(f"the package is refused: {encodable(why)}", hint="pack it again, and copy it whole")
