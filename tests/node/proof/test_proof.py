"""The proof on a server: what it finds, what it names, what it keeps, and what it takes away."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.proof import VerifyResult
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from tests.host.test_ports import free_port
from tests.node.serving import COMPILES, LIBRARY, SERVER, Flags, Host, fault, statuses

LOSSES = {
    "triton": ("ABC/__grp__moe.json", "__grp__moe", "serve"),
    "sglang_jit": ("sgl_kernel_jit_norm_9f/*.so", "sgl_kernel_jit_norm_9f", "serve"),
    "others": ("cuda/5/d/5d1f", "5", "serve"),
    "torchinductor": ("ab/cabsum.py", "cabsum", "serve"),
    "flashinfer": (".cache/flashinfer/*/90a/cached_ops/norm/norm.so", "norm", "flashinfer"),
    "deep_gemm": ("cache/*/kernel.cubin", "kernel.sm90_fp8_gemm_1d2d.0123", "deep_gemm"),
}
"""One artifact of each cache: where it lies, what it is called, and which stage should have built it."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which everything is built and proved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LIBRARY)
        host = Host(tmp_path_factory.mktemp("proved"))
        assert host.ensure().exit_code == 0
        host.keep()
        yield host
        assert host.processes() == []


@pytest.fixture
def proved(shared: Host) -> Host:
    """The same, as it was, under the path that the caches were made at."""
    shared.restore()
    return shared


def proof_of(result: PrepResult) -> VerifyResult:
    assert result.verify is not None
    return result.verify


def failed(result: PrepResult, error_type: ErrorType = ErrorType.VERIFY_FAILED) -> VerifyResult:
    """What is true of every proof alone that failed."""
    assert (result.status, result.exit_code) == (RunStatus.ERROR, 14)
    assert [(each.stage, each.error_type) for each in result.errors] == [(StageName.SERVE, error_type)]
    assert set(statuses(result).values()) == {"skipped"}
    verify = proof_of(result)
    assert (verify.ran, verify.status, verify.error_type) == (True, "error", error_type)
    return verify


@pytest.mark.parametrize("cache", LOSSES)
def test_the_loss_of_one_artifact_is_caught_and_named(proved: Host, cache: str) -> None:
    pattern, kernel, stage = LOSSES[cache]
    lost = proved.artifact(f"{cache}/{pattern}")
    lost.unlink()
    result = proved.ensure(verify_only=True)
    verify = failed(result)
    path = str(lost.relative_to(proved.layout.profiles))
    for named in (verify.new, verify.missing):
        assert [(each.cache, each.path, each.kernel, each.stage) for each in named] == [(cache, path, kernel, stage)]
    assert verify.new_files == 1
    said = cache in ("flashinfer", "deep_gemm")
    assert verify.jit_events == len(verify.events) == said, "the libraries that name what they compile"
    words = f"{cache}: {kernel}, which {stage} should have built"
    assert verify.message is not None
    assert verify.message.count(words) == 2
    assert words in result.errors[0].message
    assert proved.completion() is None
    assert proved.markers() == []


def test_after_a_proof_that_failed_the_next_run_builds_and_proves_again(proved: Host) -> None:
    proved.artifact("triton/ABC/moe.cubin").unlink()
    verify = failed(proved.ensure(verify_only=True))
    assert "Unknown key: 'cubin'" in (verify.message or ""), "the server dies of what is left of the entry"
    assert [each.kernel for each in verify.missing] == ["moe"]
    again = proved.ensure()
    assert again.status_line.endswith(" serve:ok verify:ok")
    completion = proved.completion()
    assert completion is not None
    assert completion.verification is not None
    assert "triton/ABC/moe.cubin" in completion.artifacts


def test_a_proof_alone_of_what_is_whole(proved: Host) -> None:
    before = proved.completion()
    result = proved.ensure(verify_only=True)
    assert (result.status, result.exit_code) == (RunStatus.OK, 0)
    assert {each.reason for each in result.stages.values()} == {"not_selected"}
    assert (proof_of(result).status, proof_of(result).new_files) == ("ok", 0)
    after = proved.completion()
    assert before is not None
    assert after is not None
    assert after.model_copy(update={"verification": None}) == before.model_copy(update={"verification": None})
    assert proved.markers() == []


def test_a_mem_fraction_that_was_said_goes_before_the_one_that_serve_came_to(proved: Host) -> None:
    served = proved.completion()
    assert served is not None
    write_completion(proved.layout, served.model_copy(update={"mem_fraction": 0.5}))
    verify = proof_of(proved.ensure(verify_only=True, mem_fraction=0.95, faults="no-graphs"))
    assert verify.status == "ok"
    assert "--mem-fraction-static 0.93" in " ".join(verify.command), "it is lowered once, as any server's"
    assert verify.warnings == ("mem fraction 0.95 left too little GPU memory; 0.93 was used",)


def test_a_file_in_home_is_named(proved: Host) -> None:
    verify = failed(proved.ensure(verify_only=True, faults="litters"))
    named = [(each.cache, each.path, each.stage) for each in verify.new]
    assert named == [("home", ".cache/somebody/kernel.bin", None)]
    assert verify.message is not None
    assert "home: kernel.bin" in verify.message


def own(*words: str) -> Flags:
    """A request with a server command of the campaign's own, whose flags are those that the caches are for."""
    return Flags(server_command=(*words, *SERVER, "--port", str(free_port()), COMPILES))


def test_a_server_that_does_not_use_the_caches_proves_nothing(proved: Host) -> None:
    home = proved.base / "elsewhere"
    verify = failed(proved.ensure(verify_only=True, **own("env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin")))
    assert (verify.new_files, verify.missing) == (0, ())
    assert set(verify.unread) == {"deep_gemm", "flashinfer", "sglang_jit", "torchinductor", "triton"}
    assert "rayprep env" in (verify.message or "")


def test_what_is_compiled_again_in_place_is_new(proved: Host) -> None:
    file = proved.artifact("triton/ABC/moe.cubin")
    other = b"x" * file.stat().st_size
    script = f'printf %s {other.decode()} | dd of="{file}" conv=notrunc 2>/dev/null; exec "$@"'
    verify = failed(proved.ensure(verify_only=True, **own("sh", "-c", script, "sh")))
    assert [each.path for each in verify.new] == ["triton/ABC/moe.cubin"]


def test_what_is_only_written_again_is_not(proved: Host) -> None:
    file = proved.artifact("triton/ABC/moe.cubin")
    verify = proof_of(proved.ensure(verify_only=True, **own("sh", "-c", f'touch "{file}"; exec "$@"', "sh")))
    assert (verify.status, verify.new_files) == ("ok", 0)


def test_what_a_server_left_that_died_is_nobodys(proved: Host) -> None:
    rope = proved.layout.profiles / "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/rope"
    script = f'mkdir -p "{rope}"; printf half > "{rope}/rope.so"; exit 3'
    before = proved.completion(StageName.FLASHINFER)
    failed(proved.ensure(verify_only=True, **own("sh", "-c", script, "sh")))
    assert proved.completion(StageName.FLASHINFER) == before
    assert proved.markers() == ["serve"]


def test_a_proof_of_what_was_never_prepared_is_refused(proved: Host) -> None:
    verify = failed(proved.ensure("--attention-backend=other", verify_only=True))
    assert (verify.port, verify.warmup_pid) == (None, None)
    assert "nothing is prepared" in (verify.message or "")


def test_a_servers_death_is_the_proofs_failure_and_leaves_the_marker(proved: Host) -> None:
    verify = failed(proved.ensure(verify_only=True, faults="dies-on-request"), ErrorType.SERVER_CRASHED)
    assert verify.cleanup is not None
    assert verify.cleanup.killed
    assert proved.markers() == ["serve"]
    assert proved.completion() is not None, "nothing was found to be missing"
    assert proved.ensure().status_line.endswith(" serve:ok verify:ok")


def test_a_campaigns_own_command_is_used_and_remembered(proved: Host) -> None:
    port = str(free_port())
    command = (*SERVER, "--port", port, COMPILES, "--api-key", "sk-1")
    first = proved.ensure(server_command=command)
    assert statuses(first)["serve"] == "noop", "another command is no reason to build"
    verify = proof_of(first)
    assert (verify.status, verify.port) == ("ok", int(port))
    assert verify.command == (*command[:-1], "***")
    completion = proved.completion()
    assert completion is not None
    assert completion.server_command == verify.command
    written = [proved.layout.result(f"run-{proved.runs}").read_text(encoding="utf-8"), completion.model_dump_json()]
    assert "sk-1" not in "".join([*written, *(event.json_line for event in proved.events)])
    # The same command proves nothing new, and no command means the one that was given before.
    assert proof_of(proved.ensure(server_command=command)).reason == "verified"
    assert proof_of(proved.ensure(verify_only=True)).command == verify.command


def test_a_campaigns_own_port_is_the_only_one(proved: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = proved.ensure(verify_only=True, server_command=(*SERVER, "--port", str(port)))
    verify = failed(result, ErrorType.PORT_ALL_BUSY)
    assert str(port) in (verify.message or "")
    assert proved.completion() is not None
    assert proved.markers() == [], "no server was started"


def test_what_an_aborted_server_left_is_still_suspect_after_a_proof(proved: Host) -> None:
    result = proved.ensure(
        verify_only=True, server_command=(*SERVER, "--port", str(free_port()), *fault("dies-at-start"))
    )
    failed(result, ErrorType.SERVER_START_FAILED)
    assert proved.markers() == ["serve"]
    since = proved.layout.marker("tiny-dense", StageName.SERVE).stat().st_mtime
    assert proof_of(proved.ensure(verify_only=True)).status == "ok"
    assert proved.markers() == ["serve"]
    assert proved.layout.marker("tiny-dense", StageName.SERVE).stat().st_mtime == since


def test_the_proof_can_be_left_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(LIBRARY)
    host = Host(tmp_path)
    built = host.ensure(verify=False)
    assert statuses(built)["serve"] == "ok"
    assert (proof_of(built).ran, proof_of(built).reason) == (False, "requested")
    later = host.ensure()
    assert statuses(later)["serve"] == "noop"
    assert proof_of(later).status == "ok"
    assert sorted(path.name for path in host.layout.run("run-2").glob("*.log")) == ["verify.log"]
    assert proof_of(host.ensure()).reason == "verified"
