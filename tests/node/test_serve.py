"""The `serve` stage as the node runs it, from a cold store to one that needs nothing, and what may go wrong."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.result import RunStatus
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName, StageStatus
from tests.node.serving import FAKES, LIBRARY, SKIPPED, Host, played, statuses

DEEP_GEMM, FLASHINFER, SERVE = StageName.DEEP_GEMM, StageName.FLASHINFER, StageName.SERVE
MADE = {
    *(f"triton/ABC/{name}" for name in ("__grp__moe.json", "moe.cubin", "moe.json")),
    "sglang_jit/sgl_kernel_jit_norm_9f/sgl_kernel_jit_norm.so",
    "others/cuda/5/d/5d1f",
    "torchinductor/ab/cabsum.py",
    "torchinductor/fxgraph/zz/key/graph",
}
ENTRIES = {
    *("triton/ABC", "sglang_jit/sgl_kernel_jit_norm_9f", "others/cuda/5"),
    *("torchinductor/ab/cabsum", "torchinductor/fxgraph/zz/key"),
}
"""What the stand-in writes into the caches that serve fills."""
KERNEL = {f"deep_gemm/cache/kernel.sm90_fp8_gemm_1d2d.0123/kernel.{end}" for end in ("cu", "cubin")}
MODULE = {f"flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm/norm.{end}" for end in ("cuda.o", "so")}
SHAPES = tuple(f"GEMM_NT_F8F8BF16 N={n} K={k} groups=1" for n, k in ((5120, 2048), (2048, 4096)))
"""What its recorded log names, in its order."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    yield from played(Host(tmp_path), monkeypatch, LIBRARY)


def test_from_cold_to_proved_to_nothing_to_do(host: Host) -> None:
    cold = host.ensure()
    assert (cold.status, cold.exit_code, cold.errors) == (RunStatus.OK, 0, ())
    skips = dict.fromkeys(("deep_gemm", "moe_tune", "flashinfer", "inductor"), "skipped")
    assert statuses(cold) == {**skips, "serve": "ok"}
    assert cold.status_line.endswith(" serve:ok verify:ok")
    served, verify = cold.stages[SERVE], cold.verify
    assert served.server is not None
    assert (served.server.attempts, served.server.mem_fraction, served.server.load_format) == (1, 0.96, "dummy")
    assert served.warmup_pid == served.server.warmup_pid
    assert served.artifacts is not None
    assert served.artifacts.files is not None
    assert served.artifacts.files.count == served.artifacts.files_delta == len(MADE)
    assert set(served.artifacts.built) == ENTRIES
    assert verify is not None
    assert (verify.status, verify.new_files, verify.jit_events, verify.new, verify.missing) == ("ok", 0, 0, (), ())
    assert verify.ready_s is not None
    assert verify.warmup_pid != served.warmup_pid, "a server of its own"
    assert verify.cleanup is not None
    assert verify.cleanup.killed
    completion = host.completion()
    assert completion is not None
    assert set(completion.artifacts) == MADE
    assert completion.verification is not None
    assert completion.verification.command == verify.command
    assert host.markers() == []
    assert not host.layout.scratch.exists()
    assert [path for path in (host.base / "home").rglob("*") if path.is_file()] == [], "the user's own HOME"

    adopted = {stage: host.completion(stage) for stage in (DEEP_GEMM, FLASHINFER)}
    warm = host.ensure()
    assert (warm.status, warm.exit_code) == (RunStatus.OK, 0)
    assert statuses(warm) == {**skips, "serve": "noop"}
    assert warm.verify is not None
    assert (warm.verify.ran, warm.verify.status, warm.verify.reason) == (False, "skipped", "verified")
    assert list(host.layout.run("run-2").glob("*.log")) == [], "no server was started"
    assert host.completion() == completion
    assert {stage: host.completion(stage) for stage in adopted} == adopted, "though no plan names it"


def test_what_the_server_made_elsewhere_joins_the_completions_there(host: Host) -> None:
    result = host.ensure(verify=False)
    for stage, made, units in ((DEEP_GEMM, KERNEL, SHAPES), (FLASHINFER, MODULE, ("norm",))):
        artifacts, completion = result.stages[stage].artifacts, host.completion(stage)
        assert artifacts is not None
        assert artifacts.missed == units
        assert completion is not None
        assert completion.outcome == "built"
        assert completion.missed == completion.units == tuple(sorted(units))
        assert set(completion.artifacts) == made
        assert any(stage in warning and units[0] in warning for warning in result.warnings)


def test_what_a_later_server_makes_is_added_to_what_was_adopted(host: Host) -> None:
    host.ensure(verify=False)
    rebuild = {**SKIPPED, SERVE: StageOp.REBUILD}
    result = host.ensure(ops=rebuild, verify=False, faults="wants-more")
    artifacts, completion = result.stages[FLASHINFER].artifacts, host.completion(FLASHINFER)
    assert artifacts is not None
    assert artifacts.missed == ("rope",)
    assert completion is not None
    assert completion.missed == ("norm", "rope")
    assert set(completion.artifacts) == MODULE | {"flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/rope/rope.so"}


def test_the_proof_is_made_with_the_memory_that_the_warm_up_came_to(host: Host) -> None:
    result = host.ensure(faults="no-graphs")
    served, completion = result.stages[SERVE], host.completion()
    assert served.server is not None
    assert (served.server.attempts, served.server.mem_fraction) == (2, 0.93)
    assert completion is not None
    assert completion.mem_fraction == 0.93
    assert result.verify is not None
    assert "--mem-fraction-static 0.93" in " ".join(result.verify.command)


def test_the_record_of_a_server_is_what_its_own_flags_say(host: Host) -> None:
    served = host.ensure("--mem-fraction-static=0.5", "--load-format", "auto", verify=False).stages[SERVE]
    assert served.server is not None
    assert (served.server.mem_fraction, served.server.load_format) == (0.5, "auto")
    assert not any("mem fraction" in warning for warning in served.warnings)


@pytest.mark.parametrize(
    ("fault", "error_type", "attempts"),
    [
        ("dies-at-start", ErrorType.SERVER_START_FAILED, 1),
        ("dies-on-request", ErrorType.SERVER_CRASHED, 1),
        ("disk-full", ErrorType.INSUFFICIENT_DISK, 1),
        ("oom-always", ErrorType.OOM_DURING_WARMUP, 2),
    ],
)
def test_a_server_that_fails_fails_the_stage_and_leaves_its_marker(
    host: Host, fault: str, error_type: ErrorType, attempts: int
) -> None:
    result = host.ensure(faults=fault)
    served = result.stages[SERVE]
    assert (served.status, served.status_code, served.error_type) == (StageStatus.ERROR, 14, error_type)
    assert (result.status, result.exit_code) == (RunStatus.ERROR, 14)
    assert [(error.stage, error.error_type) for error in result.errors] == [(SERVE, error_type)]
    assert served.cleanup is not None
    assert served.cleanup.killed
    assert result.verify is not None
    assert (result.verify.status, result.verify.reason) == ("skipped", "serve_failed")
    assert [event.hint for event in host.events].count("starting the warm-up server") == attempts
    assert host.markers() == ["serve"]
    assert host.completion() is None


def test_of_an_aborted_servers_files_only_what_may_be_half_written_goes(host: Host) -> None:
    host.ensure(faults="dies-on-request")
    module = host.artifact("sglang_jit/*/*.so")
    whole = module.read_bytes()
    module.write_bytes(whole[:100])  # as a linker that was killed leaves it
    kernel, empty = host.artifact("triton/ABC/moe.cubin"), host.layout.profiles / "triton" / "EMPTY" / "k.json"
    made_at = kernel.stat().st_mtime_ns
    empty.parent.mkdir()
    empty.touch()  # as a host that lost its power leaves one
    after = host.ensure(verify=False)
    assert (after.status, after.exit_code, host.markers()) == (RunStatus.OK, 0, [])
    assert module.read_bytes() == whole
    assert kernel.stat().st_mtime_ns == made_at, "Triton renames what is whole"
    assert not empty.exists()
    completion = host.completion()
    assert completion is not None
    assert set(completion.artifacts) == MADE


def test_a_rebuild_makes_all_of_it_anew(host: Host) -> None:
    host.ensure(verify=False)
    result = host.ensure(ops={**SKIPPED, SERVE: StageOp.REBUILD}, verify=False)
    artifacts, completion = result.stages[SERVE].artifacts, host.completion()
    assert artifacts is not None
    assert set(artifacts.built) == ENTRIES
    assert completion is not None
    assert set(completion.artifacts) == MADE


def test_the_servers_own_modules_are_built_beside_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = host.base / "compiler"
    compiler.write_text('#!/bin/sh\ncase $1 in qknorm*) echo "error: no"; exit 1;; esac\necho "$1" > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("FAKE_SGLANG_JIT", str(compiler))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{FAKES}{os.pathsep}{os.environ['PATH']}")  # where nvcc is
    result = host.ensure(verify=False)
    assert (result.status, result.errors) == (RunStatus.OK, ())
    artifacts, completion = result.stages[SERVE].artifacts, host.completion()
    assert artifacts is not None
    ahead = {entry for entry in artifacts.built if entry.endswith("__arch_9.0a__tvmffi_0.1.11")}
    assert len(ahead) == 4
    assert completion is not None
    assert {path.rpartition("/")[0] for path in completion.artifacts} >= ahead
    (warning,) = result.stages[SERVE].warnings
    assert "1 of 5 modules were left to the server: qknorm_64_true_bf16_t: RuntimeError: error: no" in warning


def test_a_run_that_is_cancelled_while_its_server_starts(host: Host) -> None:
    def listening() -> bool:
        log = host.log("serve")
        return log.exists() and b"Uvicorn running" in log.read_bytes()

    result = host.ensure(faults="never-ready", cancelled=listening)
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 130)
    assert result.stages[SERVE].error_type is ErrorType.INTERRUPTED
    assert result.verify is None
    assert host.markers() == ["serve"]
    assert host.completion() is None


def test_a_run_that_is_cancelled_while_it_proves(host: Host) -> None:
    def proving() -> bool:
        return any(event.name == "verify" for event in host.events)

    result = host.ensure(cancelled=proving)
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 130)
    assert result.stages[SERVE].status is StageStatus.OK
    assert host.markers() == ["serve"], "what that server compiled may be half written"
    completion = host.completion()
    assert completion is not None
    assert completion.verification is None
