"""Archives that are not taken, whatever is wrong with them or with the place: nothing changes."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit, LockTimeout, RayprepError, StageError
from rayprep.host.environment import STORE_MARK
from rayprep.host.layout import Layout
from rayprep.host.locks import acquire
from rayprep.store.epochs import highest_epoch
from rayprep.store.package.unpack import Receipt, receive
from tests.model.samples import signature
from tests.store.package.archives import FLASHINFER, MODULES, WHO, archive, every, finished, packable, take, there


def refused(layout: Layout, data: bytes, kind: type[RayprepError] = BadRequest) -> str:
    """Nothing but the lock and an empty folder is there after."""
    with pytest.raises(kind) as raised:
        take(layout, data)
    assert there(layout) == {}
    return raised.value.line


Member = tuple[tarfile.TarInfo, bytes]


def members(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info, content_of(tar, info)) for info in tar]


def content_of(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def tar_of(parts: Iterable[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in parts:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_an_archive_that_tarfile_made_is_taken_too(source: Layout, target: Layout) -> None:
    take(target, tar_of(members(archive(source))))
    assert there(target) == packable(source)


def special(name: str, kind: bytes, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


@pytest.mark.parametrize("at", [1, 5, 10])
@pytest.mark.parametrize(
    "extra",
    [
        special("torchinductor", tarfile.SYMTYPE, "/etc"),
        special("torchinductor/ab/cab.so", tarfile.SYMTYPE, "/etc/passwd"),
        special("torchinductor/ab/cab.so", tarfile.LNKTYPE, "/etc/passwd"),
        special("torchinductor/ab", tarfile.DIRTYPE),
        special("torchinductor/ab/cab.so", tarfile.CHRTYPE),
        special("torchinductor/ab/cab.so", tarfile.FIFOTYPE),
        special("/etc/passwd", tarfile.REGTYPE),
        special("../../etc/passwd", tarfile.REGTYPE),
        special("torchinductor/ab/surprise.so", tarfile.REGTYPE),
    ],
    ids=lambda extra: f"{extra[0].name}-{extra[0].type!r}",
)
def test_a_member_that_is_not_listed_is_refused_wherever_it_stands(
    source: Layout, target: Layout, extra: Member, at: int
) -> None:
    parts = members(archive(source))
    refused(target, tar_of([*parts[:at], extra, *parts[at:]]))


def test_members_that_are_listed_have_to_be_what_the_manifest_says(source: Layout, target: Layout) -> None:
    parts = members(archive(source))
    at = next(number for number, (info, _) in enumerate(parts) if info.name.endswith("cab.so"))
    info, content = parts[at]
    link = special(info.name, tarfile.SYMTYPE, "cab.cpp")
    assert "a symbolic link" in refused(target, tar_of([*parts[:at], link, *parts[at + 1 :]]))
    assert "content of torchinductor/ab/cab.so" in refused(
        target, tar_of([*parts[:at], (info, b"no!"), *parts[at + 1 :]])
    )
    assert "where its manifest has" in refused(target, tar_of([*parts[:at], *parts[at + 1 :]]))
    longer = tarfile.TarInfo(info.name)
    longer.size = 4
    assert "has 4 bytes" in refused(target, tar_of([*parts[:at], (longer, content + b"!"), *parts[at + 1 :]]))
    assert "first member" in refused(target, tar_of(parts[1:]))
    sparse = tarfile.TarInfo(info.name)
    sparse.type = tarfile.GNUTYPE_SPARSE
    refused(target, tar_of([*parts[:at], (sparse, b""), *parts[at + 1 :]]))
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    assert "a name in it" in refused(target, huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_an_archive_that_was_cut_anywhere_is_refused(source: Layout, target: Layout) -> None:
    data = archive(source)
    for size in [0, 1, 511, 512, 700, *range(1024, len(data) - 1024, 1024 + 512), len(data) - 1024]:
        assert "ends too early" in refused(target, data[:size])
    assert "more follows" in refused(target, data + b"x")
    assert "no tar archive" in refused(target, os.urandom(2048))


def test_another_kind_of_host_is_refused(source: Layout, target: Layout) -> None:
    data = archive(source)
    with pytest.raises(HostUnfit, match="profiles_root was /profiles, is /other"):
        receive(target, io.BytesIO(data), signature(profiles_root="/other"), WHO)
    assert list(target.profiles.iterdir()) == []


@pytest.mark.parametrize("link", ["torchinductor", "torchinductor/ab", "flashinfer/.cache"])
def test_nothing_goes_through_a_link(source: Layout, target: Layout, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (target.profiles / link).parent.mkdir(parents=True, exist_ok=True)
    (target.profiles / link).symlink_to(outside)
    with pytest.raises(HostUnfit, match=r"link|plain folders"):
        take(target, archive(source))
    assert list(outside.iterdir()) == []
    assert every(target) == []


def test_nothing_goes_through_a_link_inside_an_entry_of_others(source: Layout, target: Layout, tmp_path: Path) -> None:
    deep = f"{MODULES}/norm/deep/x.so"
    finished(source, FLASHINFER, {deep: "deep"}, slug="deep")
    finished(target, FLASHINFER, {f"{MODULES}/norm/mine.so": "mine"}, slug="llama")
    (target.profiles / deep).parent.symlink_to(tmp_path)
    with pytest.raises(HostUnfit, match="is a link"):
        take(target, archive(source))
    assert not (tmp_path / "x.so").exists()


def test_while_somebody_works_here_it_is_refused(source: Layout, target: Layout) -> None:
    data = archive(source)
    for path in (target.store_lock, target.slug_lock("qwen")):
        with acquire([path], "other", 0, lambda *_: None, lambda: False):
            refused(target, data, LockTimeout)
    code = "import sys; print(flush=True); sys.stdin.read()"
    mark = {**os.environ, STORE_MARK: os.path.realpath(target.profiles)}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=mark
    ) as left:
        assert left.stdin is not None
        assert left.stdout is not None
        left.stdout.readline()
        assert f"process {left.pid} of a dead run" in refused(target, data, HostUnfit)
        left.stdin.close()


def test_the_highest_epoch_is_kept_and_a_lower_one_refused(source: Layout, target: Layout) -> None:
    data, key = archive(source), every(source)[0].key
    take(target, data, Receipt("r", epochs={key: 7}))
    assert highest_epoch(target, key) == 7
    before = there(target)
    (target.profiles / "torchinductor/ab/cab.so").unlink()
    with pytest.raises(StageError, match="epoch 6, and epoch 7 was here before") as raised:
        take(target, data, Receipt("r", epochs={key: 6}))
    assert raised.value.error_type is ErrorType.LEASE_LOST
    assert not (target.profiles / "torchinductor/ab/cab.so").exists()
    take(target, data, Receipt("r", epochs={key: 7}))
    assert there(target) == before
    take(target, data, Receipt("r", epochs={key: 9}))
    assert highest_epoch(target, key) == 9


class Overtaking(io.BytesIO):
    """An archive in the middle of which a later epoch arrives, as where a file system's locks keep nobody out."""

    def __init__(self, data: bytes, file: Path) -> None:
        super().__init__(data)
        self.file = file

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(self.getvalue()) - 1024:
            self.file.write_text("8\n", encoding="ascii")
        return super().read(size)


def test_a_publisher_that_is_overtaken_meanwhile_is_refused_at_the_rename(source: Layout, target: Layout) -> None:
    key = every(source)[0].key
    stream = Overtaking(archive(source), target.profiles / ".rayprep" / "epochs" / key)
    with pytest.raises(StageError, match="epoch 7, and epoch 8"):
        receive(target, stream, signature(), Receipt("r", epochs={key: 7}))
    assert [path for path in there(target) if path[0] != "."] == []
    assert every(target) == []
