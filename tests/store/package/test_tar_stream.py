"""The archive's own bytes: headers as tarfile makes them, and headers that others made otherwise."""

import hashlib
import io
import tarfile
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.store.package.manifest import MANIFEST_NAME, PackageManifest, PackedFile, manifest_text
from rayprep.store.package.tar_stream import END, PackageReader, header, padding
from tests.model.samples import completion

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(NAMES, st.integers(0, 2**63 - 1), st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1))
@example("n" * 100, 8**11 - 1, 8**11 * 10**9 - 1)
@example("n" * 101, 8**11, 8**11 * 10**9)
@example("n" * 511, 0, -1)
@example("n" * 512, 1, 0)
def test_a_header_is_what_tarfile_makes(name: str, size: int, mtime_ns: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, max(0, mtime_ns) // 10**9, 0o664
    assert header(name, size, mtime_ns) == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


EMPTY = PackedFile(
    path=f"triton/{'k' * 60}/{'n' * 60}", size=0, sha256=f"sha256:{hashlib.sha256().hexdigest()}", mtime_ns=0
)


Form = Literal[0, 1, 2]
"""Of tarfile's formats."""


def archive(file: PackedFile, form: Form) -> bytes:
    """A package of one empty file, whose header is of the format `form`."""
    made = completion(artifacts={file.path: file.listed})
    mtimes = {file.path: file.mtime_ns}
    manifest = PackageManifest.model_construct(rayprep_version="0", completions=(made,), companions={}, mtimes=mtimes)
    text = manifest_text(manifest)
    member = tarfile.TarInfo(file.path).tobuf(form)
    return header(MANIFEST_NAME, len(text)) + text + padding(len(text)) + member + END


def read(data: bytes) -> None:
    reader = PackageReader(io.BytesIO(data))
    for file in reader.manifest.files:
        reader.copy(file, lambda _: None)
    reader.end()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_header_of_another_length_than_ours_is_read_and_so_is_what_follows(form: Form) -> None:
    """POSIX splits a long name in two where GNU tar writes two blocks more: the reader has read on by then."""
    data = archive(EMPTY, form)
    read(data)
    with pytest.raises(BadRequest, match="more follows"):
        read(data + b"x")
    with pytest.raises(BadRequest, match="ends too early"):
        read(data[: -len(END)])


@pytest.mark.parametrize("mtime_ns", [2**63 * 10**9, -(2**63) * 10**9 - 1])
def test_a_time_that_no_file_system_can_hold_is_no_manifest(mtime_ns: int) -> None:
    with pytest.raises(BadRequest, match="manifest cannot be read: mtimes"):
        read(archive(EMPTY._replace(mtime_ns=mtime_ns), tarfile.GNU_FORMAT))
