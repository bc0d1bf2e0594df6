"""Archives on real folders: what is packed comes out the same, and whatever is wrong with one, nothing changes."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rayprep.host import pack as pack_module
from rayprep.host.completions import read_completions, write_completion
from rayprep.host.environment import STORE_MARK
from rayprep.host.epochs import highest_epoch
from rayprep.host.layout import Layout
from rayprep.host.locks import acquire
from rayprep.host.markers import Marker, write_marker
from rayprep.host.moe_folder import kept_copies
from rayprep.host.pack import blocks, choose, make_manifest, pack
from rayprep.host.package_file import open_to_read, open_to_write
from rayprep.host.scan import hash_files
from rayprep.host.snapshot import wrong_hashes
from rayprep.host.unpack import Receipt, preview, receive
from rayprep.model.completion import Completion, check_completion
from rayprep.model.errors import BadRequest, ErrorType, HostUnfit, LockTimeout, RayprepError, StageError
from rayprep.model.package import MANIFEST_NAME, PackageReport
from rayprep.model.signature import Signature
from rayprep.model.stages import StageName
from tests.host.caches import fill
from tests.host.other_user import NOBODY, as_user
from tests.model.samples import completion, identity, signature
from tests.needs import needs_root, needs_tool

MODULES = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops"
MODULE = {
    f"{MODULES}/norm/norm.so": "norm",
    f"{MODULES}/norm/norm.cuda.o": "object",
    f"{MODULES}/norm/build.ninja": "rule",
    f"{MODULES}/norm/.ninja_log": "log",
    f"{MODULES}/norm/x.lock": "",
}
GRAPHS = {
    "torchinductor/ab/cab.so": "so!",
    "torchinductor/ab/cab.cpp": "cpp",
    "torchinductor/fxgraph/zz/key/graph": "graph",
    f"torchinductor/fxgraph/zz/{'long' * 40}/graph": "a name over 100 bytes",
    "torchinductor/aotautograd/ä/empty": "",
}
COMPANIONS = {path for path in MODULE if path.endswith(("ninja", "_log"))}
OLD = 1_700_000_000_123_456_789
INDUCTOR, FLASHINFER = StageName.INDUCTOR, StageName.FLASHINFER
WHO = Receipt(run_id="r")
DEAD = Marker(owner_pid=1, started_at=completion().started_at, run_id="dead", host="h")


def finished(layout: Layout, stage: StageName, files: dict[str, str], slug: str = "qwen") -> Completion:
    """Files, each with a time of its own, and the completion that lists their artifacts."""
    fill(layout, files)
    for number, path in enumerate(sorted(files)):
        os.utime(layout.profiles / path, ns=(OLD + number, OLD + number))
    listed = [path for path in files if path not in COMPANIONS and not path.endswith(".lock")]
    hashes = hash_files(layout.profiles, listed)
    artifacts = {path: (len(files[path].encode()), hashes[path]) for path in sorted(listed)}
    made = completion(stage, identity=identity(model_slug=slug), artifacts=artifacts)
    write_completion(layout, made)
    return made


def at(folder: Path) -> Layout:
    (folder / "profiles").mkdir(parents=True)
    return Layout(folder / "profiles", folder / "telemetry")


@pytest.fixture
def source(tmp_path: Path) -> Layout:
    layout = at(tmp_path / "source")
    finished(layout, INDUCTOR, GRAPHS)
    finished(layout, FLASHINFER, MODULE)
    return layout


@pytest.fixture
def target(tmp_path: Path) -> Layout:
    return at(tmp_path / "target")


def every(layout: Layout) -> list[Completion]:
    return [each for stage in StageName for each in read_completions(layout, stage)[0]]


def archive(layout: Layout) -> bytes:
    out = io.BytesIO()
    pack(layout, every(layout), out)
    return out.getvalue()


def take(layout: Layout, data: bytes, receipt: Receipt = WHO) -> PackageReport:
    return receive(layout, io.BytesIO(data), signature(), receipt)


def there(layout: Layout) -> dict[str, tuple[str, int]]:
    """Every file but locks: its content and its time of change, or only the content of what is written anew.

    What a killed writer of one of our own files left beside it is looked at by nobody.
    """
    top, found = layout.profiles, {}
    for path in (each for each in top.rglob("*") if not each.is_dir() and ".locks" not in each.parts):
        name = path.relative_to(top).as_posix()
        if name[0] == "." and path.suffix == ".tmp":
            continue
        found[name] = (path.read_text(encoding="utf-8"), 0 if name[0] == "." else path.lstat().st_mtime_ns)
    return found


def packable(layout: Layout) -> dict[str, tuple[str, int]]:
    return {path: found for path, found in there(layout).items() if not path.endswith(".lock")}


def test_what_is_packed_comes_out_the_same(source: Layout, target: Layout) -> None:
    report = take(target, archive(source))
    assert there(target) == packable(source)
    assert (report.entries, report.files, len(report.completions)) == (5, 9, 2)
    assert not (target.profiles / ".rayprep" / "scratch").exists()
    assert not list((target.profiles / ".in_progress").rglob("*"))


def test_the_same_caches_make_the_same_archive_and_any_tar_reads_it(source: Layout, tmp_path: Path) -> None:
    data = archive(source)
    assert data == archive(source)
    names = subprocess.run(["tar", "t"], input=data, capture_output=True, check=True).stdout.decode().splitlines()
    assert names[0] == MANIFEST_NAME
    assert len(names) == 10
    subprocess.run(["tar", "x", "-C", str(tmp_path)], input=data, check=True)
    assert (tmp_path / "torchinductor/ab/cab.so").read_text(encoding="utf-8") == "so!"


def test_the_rest_of_an_archive_is_made_without_what_lies_before_it(
    source: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "CHUNK", 3)  # so that files come in several blocks
    manifest, data = make_manifest(source, every(source)), archive(source)
    for start in range(0, len(data), 333):
        assert b"".join(blocks(source, manifest, start)) == data[start:]
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        ends = {each.name: each.offset_data + each.size + -each.size % 512 for each in members}
    for file in manifest.files:
        (source.profiles / file.path).unlink()
        end = ends[file.path]
        assert b"".join(blocks(source, manifest, end)) == data[end:]


def test_a_second_time_nothing_is_touched(source: Layout, target: Layout) -> None:
    take(target, archive(source))
    (target.profiles / f"{MODULES}/norm/.ninja_log").write_text("rewritten by use", encoding="utf-8")
    inodes = {path: path.stat().st_ino for path in target.profiles.rglob("*") if ".locks" not in path.parts}
    report = take(target, archive(source))
    assert (report.completions, report.files, len(report.kept)) == ((), 0, 2)
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_what_is_damaged_comes_in_again_and_the_rest_stays(source: Layout, target: Layout) -> None:
    take(target, archive(source))
    (target.profiles / "torchinductor/ab/cab.so").write_text("SO!", encoding="utf-8")
    whole = target.profiles / "torchinductor/fxgraph/zz/key/graph"
    inode = whole.stat().st_ino
    report = take(target, archive(source))
    assert (report.entries, report.files, len(report.completions), len(report.kept)) == (1, 2, 1, 1)
    assert there(target) == packable(source)
    assert whole.stat().st_ino == inode


def test_another_models_build_of_an_entry_stays_and_both_hold(source: Layout, target: Layout) -> None:
    mine = {f"{MODULES}/norm/norm.so": "MINE", f"{MODULES}/norm/build.ninja": "mine"}
    finished(target, FLASHINFER, mine, slug="llama")
    take(target, archive(source))
    texts = {path: text for path, (text, _) in there(target).items()}
    assert texts[f"{MODULES}/norm/norm.so"] == "MINE"
    assert texts[f"{MODULES}/norm/build.ninja"] == "mine"
    assert texts[f"{MODULES}/norm/norm.cuda.o"] == "object"
    assert_nothing_half(target)
    assert len(every(target)) == 3


def test_a_users_config_in_the_place_of_the_received_one_is_kept(source: Layout, target: Layout) -> None:
    path = "moe_configs/configs/triton_3_6_0/E=8,N=64.json"
    finished(source, StageName.MOE_TUNE, {path: '{"1": {}}'})
    finished(target, StageName.MOE_TUNE, {path: '{"2": {}}'})
    (target.profiles / path).write_text('{"17": {}}')
    take(target, archive(source))
    assert (target.profiles / path).read_text() == '{"1": {}}'
    assert [copy.read_text() for copy in kept_copies(target, target.profiles / path)] == ['{"17": {}}']


def test_a_users_config_is_kept_where_an_aborted_builds_files_go(source: Layout, target: Layout) -> None:
    finished(source, StageName.MOE_TUNE, {"moe_configs/configs/triton_3_6_0/E=8,N=64.json": '{"1": {}}'})
    write_marker(target, "qwen", StageName.MOE_TUNE, DEAD)
    path = "moe_configs/configs/triton_3_6_0/E=9,N=64.json"
    fill(target, {path: '{"17": {}}'})
    take(target, archive(source))
    assert [copy.read_text() for copy in kept_copies(target, target.profiles / path)] == ['{"17": {}}']


def test_what_an_aborted_build_left_goes_and_its_marker(source: Layout, target: Layout) -> None:
    write_marker(
        target, "qwen", FLASHINFER, Marker(owner_pid=1, started_at=completion().started_at, run_id="d", host="h")
    )
    fill(target, {f"{MODULES}/half/half.so": "ha", f"{MODULES}/norm/norm.so": "no"})
    fill(target, {f"{MODULES}/earlier/e.so": "e"})
    os.utime(target.profiles / f"{MODULES}/earlier/e.so", ns=(OLD, OLD))
    take(target, archive(source))
    left = there(target)
    assert left.pop(f"{MODULES}/earlier/e.so")
    assert left == packable(source)


def test_a_dry_run_proves_and_writes_nothing(source: Layout, target: Layout) -> None:
    data = archive(source)
    report = preview(target, io.BytesIO(data), signature())
    assert (report.dry_run, report.files, len(report.completions)) == (True, 9, 2)
    assert list(target.profiles.iterdir()) == []
    with pytest.raises(BadRequest, match="content of"):
        preview(target, io.BytesIO(data.replace(b"norm\0", b"NORM\0")), signature())


# What pack refuses.


def damage(layout: Layout, path: str, how: Callable[[Path], object]) -> str:
    how(layout.profiles / path)
    with pytest.raises(HostUnfit) as raised:
        archive(layout)
    assert "run `rayprep ensure" in raised.value.line
    assert ("--deep" in raised.value.hint) == ("is not what" in raised.value.message), "which alone finds it"
    return raised.value.line


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda path: path.write_bytes(b"no!"), "is not what its completion lists"),
        (lambda path: path.write_bytes(b"longer"), "has 6 bytes, its completion lists 3"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: (path.unlink(), path.symlink_to("cab.cpp")), "is no plain file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no plain file"),
        (lambda path: (path.parent.rename(path.parents[2] / "x"), path.parent.symlink_to("../x")), "is no plain file"),
    ],
)
def test_only_what_the_completion_lists_is_packed(source: Layout, how: Callable[[Path], object], why: str) -> None:
    path = "torchinductor/ab/cab.so"
    line = damage(source, path, how)
    assert why in line
    assert "torchinductor/ab/cab." in line


@needs_root()
@pytest.mark.parametrize("folder", ["torchinductor/ab", ".rayprep/inductor", f"{MODULES}/norm"])
def test_what_another_user_may_not_read_is_named(source: Layout, folder: str) -> None:
    (source.profiles / folder).chmod(0o700)
    for parent in source.profiles.parents:
        if parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o055)

    def work() -> None:
        pack(source, choose(source, ["qwen"], 1, signature), io.BytesIO())

    with pytest.raises(HostUnfit, match="cannot be read: Permission denied") as raised:
        as_user(NOBODY, work)
    assert (folder in raised.value.message, raised.value.hint[:14]) == (True, "chmod or chown")
    assert raised.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED


def test_nothing_is_packed_where_no_completion_lists_a_file(source: Layout) -> None:
    """A stage that has nothing to build here leaves one all the same."""
    for each in every(source):
        source.completion(each.stage, each.key).unlink()
    note = completion(StageName.DEEP_GEMM, identity=identity(model_slug="qwen"), outcome="skipped", artifacts={})
    write_completion(source, note)
    for name in ("qwen", note.key):
        with pytest.raises(BadRequest, match=f"nothing to pack: no completion of {name} in .* lists a file"):
            choose(source, [name], 1, signature)


def test_a_stage_that_is_being_built_is_not_packed(source: Layout) -> None:
    write_marker(source, "qwen", INDUCTOR, DEAD)
    with pytest.raises(HostUnfit, match="inductor of qwen is being built"):
        archive(source)


def test_a_key_means_its_completion_and_a_slug_all_that_fit_this_host(source: Layout) -> None:
    inductor, flashinfer = every(source)[1], every(source)[0]
    write_completion(
        source, completion(INDUCTOR, identity=identity(model_slug="qwen"), signature=signature(python="3.9"))
    )
    write_completion(source, completion(INDUCTOR, identity=identity(model_slug="qwen", tp=2)))
    compiled = identity(model_slug="qwen", server_flags=("--enable-torch-compile",))
    write_completion(source, completion(INDUCTOR, identity=compiled, outcome="unsupported", artifacts={}))
    assert choose(source, [inductor.key], 1, no_signature) == [inductor]
    assert choose(source, ["qwen", inductor.key], 1, signature) == [flashinfer, inductor]
    with pytest.raises(BadRequest, match="no completion llama"):
        choose(source, ["llama"], 1, signature)
    with pytest.raises(BadRequest, match="compute_capability was sm_90, is sm_100"):
        choose(source, ["qwen"], 1, lambda: signature(compute_capability="sm_100"))
    source.completion(INDUCTOR, inductor.key).write_text("{", encoding="utf-8")
    with pytest.raises(HostUnfit, match="cannot be read"):
        choose(source, ["qwen"], 1, signature)


def no_signature() -> Signature:
    raise AssertionError("a key needs no look at the host")


# What unpack refuses.


def refused(layout: Layout, data: bytes, kind: type[RayprepError] = BadRequest) -> str:
    """Nothing but the lock and an empty folder is there after."""
    with pytest.raises(kind) as raised:
        take(layout, data)
    assert there(layout) == {}
    return raised.value.line


Member = tuple[tarfile.TarInfo, bytes]


def members(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


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


# Killed.

_EVENTS = frozenset({"os.rename", "os.remove", "os.utime"})


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Whether a process that does `work` was killed before the change to the file system of that number."""
    pid = os.fork()
    if pid == 0:
        left = moment

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in _EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def assert_nothing_half(layout: Layout) -> None:
    """What reads as valid, by its size and without a marker, is so byte for byte."""
    for each in every(layout):
        sizes = {path: (layout.profiles / path).stat().st_size for path in hash_files(layout.profiles, each.artifacts)}
        marked = layout.marker(each.identity.model_slug, each.stage).exists()
        if not marked and check_completion(each, signature(), sizes).valid:
            assert wrong_hashes(layout.profiles, each) == ()


@pytest.mark.parametrize("state", ["empty", "damaged", "shared"])
def test_killed_at_any_moment_it_leaves_nothing_half_and_the_next_one_mends(
    source: Layout, tmp_path: Path, state: str
) -> None:
    data = archive(source)
    moment = 0
    while True:
        target = at(tmp_path / str(moment))
        if state == "damaged":
            take(target, data)
            (target.profiles / "torchinductor/fxgraph/zz/key/graph").write_text("GRAPHS", encoding="utf-8")
            (target.profiles / f"{MODULES}/norm/norm.so").write_text("NORMS", encoding="utf-8")
        if state == "shared":
            finished(target, FLASHINFER, {f"{MODULES}/norm/mine.so": "mine"}, slug="llama")
        killed = killed_at(moment, lambda: take(target, data))  # noqa: B023 - called before the next round
        assert_nothing_half(target)
        take(target, data)
        left = there(target)
        if state == "shared":
            left = {path: found for path, found in left.items() if "llama" not in path and "mine.so" not in path}
        assert left == packable(source)
        assert_nothing_half(target)
        if not killed:
            break
        moment += 1
    assert moment > 15


# The file.


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


def test_a_disk_that_is_full_is_said_of_the_file() -> None:
    full = Path("/dev/full")
    with pytest.raises(HostUnfit, match="package - cannot be written: No space left") as raised, open_to_write("-"):
        full.write_bytes(b"x")
    assert raised.value.error_type is ErrorType.INSUFFICIENT_DISK
    assert "--output" in raised.value.hint
