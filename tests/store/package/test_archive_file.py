"""The file that an archive is in: it is there when it is whole, compressed or not."""

import hashlib
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.host.layout import Layout
from rayprep.store.package.archive_file import open_to_read, open_to_write
from rayprep.store.package.pack import pack
from rayprep.store.package.unpack import receive
from tests.model.samples import signature
from tests.needs import needs_tool
from tests.store.package.archives import WHO, at, every, packable, there


@needs_tool("zstd")
@pytest.mark.parametrize("name", ["caches.tar", "caches.tar.zst"])
def test_a_file_is_there_when_it_is_whole(source: Layout, target: Layout, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open_to_write(str(path)) as out:
        pack(source, every(source), out)
        assert not path.exists()
    with open_to_read(str(path)) as stream:
        receive(target, stream, signature(), WHO)
    assert there(target) == packable(source)
    assert (path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd") == name.endswith(".zst")
    (source.profiles / "torchinductor/ab/cab.so").unlink()
    whole = path.read_bytes()
    with pytest.raises(HostUnfit), open_to_write(str(path)) as out:
        pack(source, every(source), out)
    assert path.read_bytes() == whole
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [name]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadRequest, match="ends too early"), open_to_read(str(path)) as stream:
        receive(at(tmp_path / "third"), stream, signature(), WHO)


def test_a_file_that_cannot_be_read_or_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read: No such file"), open_to_read(str(tmp_path / "none")):
        pass
    with pytest.raises(BadRequest, match="cannot be written: No such file"), open_to_write(str(tmp_path / "a" / "b")):
        pass


def digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@needs_tool("zstd")
@pytest.mark.parametrize("name", ["caches.tar", "caches.tar.zst"])
def test_only_the_archive_of_the_digest_is_taken(source: Layout, target: Layout, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open_to_write(str(path)) as out:
        pack(source, every(source), out)
    assert out.sha256 == digest(path), "of the file as it lies there"
    whole = path.read_bytes()
    other = f"sha256:{'0' * 64}"
    for data, expected in (
        (whole, other),
        (whole[:-1], out.sha256),
        (whole + b"x", out.sha256),
        (whole[:600] + bytes([whole[600] ^ 1]) + whole[601:], out.sha256),
        (b"no archive at all", out.sha256),
        (b"", out.sha256),
    ):
        path.write_bytes(data)
        with pytest.raises(BadRequest) as raised, open_to_read(str(path), expected) as stream:
            receive(target, stream, signature(), WHO)
        assert digest(path) in raised.value.message
        assert expected in raised.value.message
        assert there(target) == {}
    path.write_bytes(whole)
    with open_to_read(str(path), out.sha256) as stream:
        receive(target, stream, signature(), WHO)
    assert there(target) == packable(source)


@needs_tool("zstd")
def test_what_compresses_out_of_proportion_is_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "zeros.tar.zst"
    with pytest.raises(HostUnfit, match="out of proportion"), open_to_write(str(path)) as out:
        for _ in range(300):
            out.write(bytes(1 << 20))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_said_of_the_file() -> None:
    full = Path("/dev/full")
    with pytest.raises(HostUnfit, match="package - cannot be written: No space left") as raised, open_to_write("-"):
        full.write_bytes(b"x")
    assert raised.value.error_type is ErrorType.INSUFFICIENT_DISK
    assert "--output" in raised.value.hint
