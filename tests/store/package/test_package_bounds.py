"""Hostile archives: none makes `unpack` take much memory or time, and nothing comes of them."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.base.sealed import seal
from rayprep.store.package.manifest import MANIFEST_NAME, MOST_VALUES, PackageManifest, manifest_text
from rayprep.store.package.tar_stream import END, PackageReader, header, padding
from tests.model.samples import completion
from tests.needs import needs_tool

MIB = 1 << 20
LIMIT_MIB = 300
WAIT_S = 120
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(process.pid, 0)
print("PEAK", os.waitstatus_to_exitcode(status), used.ru_maxrss // 1024)
"""


def unpack(archive: Path, *args: str) -> tuple[int, int, str]:
    """The exit status, the peak of resident MiB, and what was said."""
    command = [sys.executable, "-m", "rayprep", "unpack", str(archive), "--device", "cpu", *args]
    root = archive.parent / "profiles"
    # A process counts the memory of the one that it was forked from, so a small one starts it.
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command, "--profiles-root", str(root)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    said, _, measured = done.stdout.rpartition("PEAK ")
    code, peak = map(int, measured.split())
    return code, peak, said


def refused(archive: Path, *args: str) -> str:
    code, peak, said = unpack(archive, *args)
    assert (code, len(said.splitlines())) == (2, 1), said
    assert peak < LIMIT_MIB
    assert not (archive.parent / "profiles").exists()
    return said


def member(text: bytes) -> bytes:
    return header(MANIFEST_NAME, len(text)) + text + padding(len(text))


def compress(path: Path, parts: Iterator[bytes], *options: str) -> Path:
    with path.open("wb") as file:
        process = subprocess.Popen(["zstd", "-q", "-1", "-c", *options], stdin=subprocess.PIPE, stdout=file)
        assert process.stdin is not None
        for part in parts:
            process.stdin.write(part)
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    return path


def repeated(part: str, count: int, join: str = ",") -> str:
    return join.join([part] * count)


def document(completions: str = "", mtimes: str = "", more: str = "") -> bytes:
    head = f'"schema_version":"2","rayprep_version":"0","completions":[{completions}],"companions":{{}}'
    text = f'{{{head},"mtimes":{{{mtimes}}}{more}}}'
    return seal(text).encode()


def numbered(count: int, form: str) -> str:
    return ",".join(form % number for number in range(count))


def listing(**fields: str) -> str:
    """A completion, in which a field is JSON text."""
    made = json.loads(completion().model_dump_json()) | {name: f"<{name}>" for name in fields}
    text = json.dumps(made)
    for name, value in fields.items():
        text = text.replace(f'"<{name}>"', value)
    return text


MANIFESTS: dict[str, Callable[[], bytes]] = {
    "keys": lambda: document(mtimes=numbered(MOST_VALUES - 100, '"%085d":1')),
    "wrong values": lambda: document(listing(), mtimes=numbered(250_000, '"%0140d":"x"')),
    "wrong artifacts": lambda: document(listing(artifacts="{" + numbered(MOST_VALUES // 4, '"%d":["x",1]') + "}")),
    "completions": lambda: document(repeated(listing(), 5000)),
    "no completions": lambda: document(repeated('{"a":""}', MOST_VALUES // 2 - 100)),
    "few completions": lambda: document(repeated('{"a":""}', 19_000)),
    "one wrong completion": lambda: document('{"a":[' + repeated('"' + "x" * 80 + '"', MOST_VALUES - 100) + "]}"),
    "arrays": lambda: document(more=',"z":[' + repeated('[""]', MOST_VALUES) + "]"),
    "one string": lambda: document(listing(model_source='"' + "x" * 30 * MIB + '"')),
    "wide strings": lambda: document(more=',"z":[' + repeated('"' + "x" * 3000 + '\N{GRINNING FACE}"', 9000) + "]"),
    "depth": lambda: document(more=',"z":' + "[" * MIB),
    "digits": lambda: document(listing(duration_s="1" * 10**5)),
    "infinite": lambda: document(listing(duration_s="1e999")),
    "doubles": lambda: document(listing(), more=',"mtimes":{}'),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_manifest_takes_much_memory(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(member(MANIFESTS[name]()) + END)
    assert "manifest cannot be read" in refused(archive)


@needs_tool("zstd")
def test_a_few_bytes_that_become_many_are_refused(tmp_path: Path) -> None:
    big = tarfile.TarInfo(MANIFEST_NAME)
    big.size = 300 * MIB
    start = big.tobuf(tarfile.GNU_FORMAT)
    archive = compress(tmp_path / "a.tar.zst", (part for part in [start, *[b"[1]," * (MIB // 4)] * 300]))
    assert archive.stat().st_size < MIB
    assert "manifest has 314572800 bytes" in refused(archive)


@pytest.mark.parametrize(
    "size", [b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"7" * 11 + b"\0", b"-0000000001\0"]
)
def test_a_size_that_lies_takes_nothing(tmp_path: Path, size: bytes) -> None:
    block = bytearray(header(MANIFEST_NAME, 0))
    block[124:136] = size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(block) + b"{}")
    refused(archive)


@needs_tool("zstd")
def test_zstd_takes_no_more_memory_for_whatever_asks_for_it(tmp_path: Path) -> None:
    zeros = (bytes(MIB) for _ in range(64))
    assert "zstd" in refused(compress(tmp_path / "a.tar.zst", zeros, "--ultra", "--zstd=wlog=31"))


def packed(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    """An archive's start: a manifest of one file of so many bytes, and the file's header."""
    path = "torchinductor/zeros"
    made = completion(artifacts={path: (size, "sha256:" + "0" * 64)})
    manifest = PackageManifest(rayprep_version="0", completions=(made,), companions={}, mtimes={path: 0})
    return tmp_path / "a.tar.zst", member(manifest_text(manifest)) + header(path, size)


@needs_tool("zstd")
def test_content_out_of_proportion_is_read_no_further(tmp_path: Path) -> None:
    from rayprep.store.package.archive_file import open_to_read

    archive, start = packed(tmp_path, 1 << 40)
    compress(archive, (part for part in [start, *[bytes(MIB)] * 600]))
    taken = 0

    def count(data: memoryview) -> None:
        nonlocal taken
        taken += len(data)

    with pytest.raises(BadRequest, match="more than 200 times"), open_to_read(str(archive)) as stream:
        reader = PackageReader(stream)
        reader.copy(reader.manifest.files[0], count)
    assert taken < 300 * MIB


class Endless:
    """A stream that never ends: what another host or a pipe may send."""

    def __init__(self, start: bytes, unit: bytes) -> None:
        self._next, self._unit = start, unit
        self.given = 0

    def read(self, _: int, /) -> bytes:
        data, self._next = self._next, self._unit
        self.given += len(data)
        return data


LONG_NAME = tarfile.TarInfo("././@LongLink")
LONG_NAME.type, LONG_NAME.size = tarfile.GNUTYPE_LONGNAME, 512


@pytest.mark.parametrize(
    "unit", [bytes(MIB), LONG_NAME.tobuf(tarfile.GNU_FORMAT) + b"n" * 512, b"x" * MIB], ids=["zeros", "names", "text"]
)
def test_a_stream_without_end_is_left_at_the_first_excess(unit: bytes) -> None:
    made = completion(artifacts={})
    manifest = PackageManifest(rayprep_version="0", completions=(made,), companions={}, mtimes={})
    for start in (member(manifest_text(manifest)), unit):
        stream = Endless(start, unit)
        with pytest.raises(BadRequest):
            PackageReader(stream).end()
        assert stream.given < 8 * MIB


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert "no plain file" in refused(path)


@needs_tool("zstd")
def test_what_follows_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    _, start = packed(tmp_path, 0)
    archive = compress(tmp_path / "a.tar.zst", iter([start + END]))
    archive.write_bytes(archive.read_bytes() + b"garbage")
    from rayprep.store.package.archive_file import open_to_read

    with pytest.raises(BadRequest, match="zstd"), open_to_read(str(archive)) as stream:
        while stream.read(MIB):
            pass
