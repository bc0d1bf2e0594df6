"""What is not packed: damaged files, unreadable ones, stages that are being built, what nobody listed."""

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.host.layout import Layout
from rayprep.model.signature import Signature
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.markers import write_marker
from rayprep.store.package.pack import choose, pack
from tests.host.other_user import NOBODY, as_user
from tests.model.samples import completion, identity, signature
from tests.needs import needs_root
from tests.store.package.archives import DEAD, INDUCTOR, MODULES, archive, every


def damage(layout: Layout, path: str, how: Callable[[Path], object]) -> str:
    how(layout.profiles / path)
    with pytest.raises(HostUnfit) as raised:
        archive(layout)
    assert "run `rayprep ensure" in raised.value.line
    assert ("--deep" in raised.value.hint) == ("is not what" in raised.value.message), "which alone finds it"
    return raised.value.line


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda path: path.write_bytes(b"no!"), "is not what its completion lists"),
        (lambda path: path.write_bytes(b"longer"), "has 6 bytes, its completion lists 3"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: (path.unlink(), path.symlink_to("cab.cpp")), "is no plain file"),
        (put_a_pipe, "is no plain file"),
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
