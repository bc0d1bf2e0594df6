"""A server that dies of what rayprep put before it: started once more without that, and what is left then."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model import blame
from rayprep.model.plan import StagePlan, Work
from rayprep.model.proof import VERIFY
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName
from rayprep.stages.flashinfer.stage import FlashInferStage
from rayprep.stages.moe_tune import second_try
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.table import BY_NAME
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.moe_folder import digest_of
from rayprep.store.scan import artifacts_of
from tests.needs import needs_torch
from tests.node.serving import LIBRARY, Flags, Host, played, statuses
from tests.node.test_moe_tune import NAME, OTHERS, STAND_IN, MoeHost

pytestmark = [pytest.mark.tuner, needs_torch()]

MOE, SERVE, FLASHINFER = StageName.MOE_TUNE, StageName.SERVE, StageName.FLASHINFER
PLACE = f"moe_configs/configs/triton_3_6_0/{NAME}"
TUNED_BEFORE = {**OTHERS, MOE: StageOp.SKIP}
TOO_MUCH = {"BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 64}
DEADLY = b"DEADLY"
SLOW = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/slow"
PARTS = {
    "triton": "triton/ABC/moe.cubin",
    "flashinfer": "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm/norm.so",
    "sglang_jit": "sglang_jit/sgl_kernel_jit_norm_9f/sgl_kernel_jit_norm.so",
    "deep_gemm": "deep_gemm/cache/kernel.sm90_fp8_gemm_1d2d.0123/kernel.cubin",
    "torchinductor": "torchinductor/ab/cabsum.py",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    yield from played(Host(tmp_path), monkeypatch, LIBRARY)


@pytest.fixture
def moe_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MoeHost]:
    yield from played(MoeHost(tmp_path), monkeypatch, LIBRARY, STAND_IN)


def make_deadly(host: Host, below: str, content: bytes = DEADLY) -> None:
    """As if it had been built so: the completions list it as it is."""
    path = host.layout.profiles / below
    path.write_bytes(content)
    listed_as_it_is(host, below)


def listed_as_it_is(host: Host, below: str) -> None:
    for stage in StageName:
        for completion in read_completions(host.layout, stage)[0]:
            if below in completion.artifacts:
                artifacts = {**completion.artifacts, **artifacts_of(host.layout.profiles, [below])}
                write_completion(host.layout, completion.model_copy(update={"artifacts": artifacts}))


def request_of(host: MoeHost) -> Flags:
    """The shortest tuning."""
    return Flags(model=str(host.model), moe_batch_sizes=(1,), moe_strategy="fixed", ops=OTHERS)


def plant(host: MoeHost, *, listed: bool = True) -> bytes:
    """Puts an entry that no server can launch into the tuned config. Returns the file's content."""
    path = host.layout.profiles / PLACE
    path.write_text(json.dumps({**json.loads(path.read_text()), "96": TOO_MUCH}))
    if listed:
        listed_as_it_is(host, PLACE)
    return path.read_bytes()


def everything(host: Host) -> dict[str, bytes]:
    caches = ("triton", "flashinfer", "sglang_jit", "deep_gemm", "torchinductor", "moe_configs", "others")
    found = (path for cache in caches for path in (host.layout.profiles / cache).rglob("*") if path.is_file())
    return {str(path.relative_to(host.layout.profiles)): path.read_bytes() for path in found}


@pytest.mark.parametrize("cache", PARTS)
def test_what_a_server_dies_of_is_set_aside_and_it_makes_its_own(host: Host, cache: str) -> None:
    assert host.ensure(verify=False).exit_code == 0
    sound = everything(host)
    make_deadly(host, PARTS[cache])

    result = host.ensure("--random-seed=1")

    assert result.exit_code == 0, result.errors
    assert statuses(result)["serve"] == "ok"
    assert result.verify and (result.verify.status, result.verify.new_files) == ("ok", 0)
    assert everything(host) == sound, "as if it had not been"
    told = [warning for warning in result.warnings if "a server died of" in warning]
    assert len(told) == 1, result.warnings
    assert set(statuses(host.ensure("--random-seed=1")).values()) <= {"noop", "skipped"}
    assert set(statuses(host.ensure(verify=False)).values()) <= {"noop", "skipped"}, "also for those who share it"


def test_where_machine_code_crashes_without_a_word_any_cache_may_be_to_blame(host: Host) -> None:
    assert host.ensure(verify=False).exit_code == 0
    sound = everything(host)
    make_deadly(host, PARTS["sglang_jit"], DEADLY + b"CRASHES")
    result = host.ensure("--random-seed=1")
    assert result.exit_code == 0, result.errors
    assert everything(host) == sound
    assert any("something in the caches" in warning for warning in result.warnings)


@pytest.mark.parametrize("by_the_proof", [True, False])
def test_an_entry_that_is_made_of_fewer_files_now_is_no_loss(host: Host, by_the_proof: bool) -> None:
    """As of another setting of Triton's, which keeps no source of what it compiles."""
    assert host.ensure(verify=False).exit_code == 0
    make_deadly(host, PARTS["triton"])
    more = host.layout.profiles / "triton/ABC/moe.ptx"
    more.write_bytes(b"text")
    served = host.completion()
    assert served
    artifacts = {**served.artifacts, "triton/ABC/moe.ptx": (4, digest_of(b"text"))}
    write_completion(host.layout, served.model_copy(update={"artifacts": artifacts}))

    if not by_the_proof:  # as of a run that was killed
        marker = host.layout.marker(served.identity.model_slug, SERVE)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")
    result = host.ensure(verify_only=by_the_proof)

    assert result.exit_code == 0, result.errors
    assert result.verify and (result.verify.status, result.verify.missing) == ("ok", ())
    served = host.completion()
    assert served
    assert not more.exists()
    assert "triton/ABC/moe.ptx" not in served.artifacts


class SlowBuilder(FlashInferStage):
    """Has half of a module when a server starts beside it, and the rest when that is tried without."""

    def plan(self, request: StageRequest) -> StagePlan:
        return Work(units=("slow",), required_bytes=1, seconds=1.0, estimate="one")

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        home = context.layout.profiles / SLOW
        home.mkdir()
        (home / "slow.cuda.o").write_bytes(b"half")
        until = time.monotonic() + 3
        while time.monotonic() < until and home.exists():
            time.sleep(0.02)
        (home / "slow.so").write_bytes(b"whole")
        return Built(units=("slow",), used=frozenset(f"{SLOW}/slow.{end}" for end in ("cuda.o", "so")))


def test_what_is_being_built_beside_a_server_is_not_set_aside(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.ensure(verify=False).exit_code == 0
    make_deadly(host, PARTS["flashinfer"])
    monkeypatch.setitem(BY_NAME, FLASHINFER, SlowBuilder())
    monkeypatch.setattr(blame, "_named", lambda *_: ())  # then it may be any of the cache's
    result = host.ensure("--random-seed=1", ops={MOE: StageOp.SKIP})
    assert (statuses(result)["flashinfer"], statuses(result)["serve"]) == ("ok", "ok"), result.errors
    assert result.verify and (result.verify.status, result.verify.new_files) == ("ok", 0)


def test_a_cache_that_is_a_mount_of_its_own_is_tried_without_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.ensure(verify=False).exit_code == 0
    sound = everything(host)
    make_deadly(host, PARTS["triton"])
    real, cache = os.rename, host.layout.profiles / "triton"

    def rename(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        folders = [Path(f"/proc/self/fd/{fd}").readlink() for fd in (src_dir_fd, dst_dir_fd) if fd is not None]
        if len({folder.is_relative_to(cache) for folder in folders}) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", rename)
    result = host.ensure("--random-seed=1")
    assert result.exit_code == 0, result.errors
    assert everything(host) == sound


@pytest.mark.parametrize("cache", ["triton", "flashinfer"])
def test_a_proofs_server_that_dies_of_it_is_proved_without(host: Host, cache: str) -> None:
    assert host.ensure(verify=False).exit_code == 0
    sound = everything(host)
    make_deadly(host, PARTS[cache])
    result = host.ensure(verify_only=True)
    assert result.verify and (result.verify.status, result.verify.new_files) == ("ok", 0), result.verify
    assert everything(host) == sound
    assert any("a server died of" in warning for warning in result.warnings)


def test_what_is_not_to_blame_is_put_back(host: Host) -> None:
    """The server dies at capture whatever lies there."""
    assert host.ensure(verify=False).exit_code == 0
    sound = everything(host)
    result = host.ensure("--random-seed=1", faults="bad-kernel")
    assert result.stages[SERVE].error_type is ErrorType.COMPILE_FAILED
    assert everything(host) == sound
    assert result.warnings == ()


@pytest.mark.slow  # by default a proof withdraws one
def test_a_config_planted_behind_our_back_is_withdrawn(moe_host: MoeHost) -> None:
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    planted = plant(host)

    result = host.ensure("--random-seed=1", **(asked | Flags(ops=TUNED_BEFORE)))

    failed = result.stages[MOE].errors[0]
    assert failed.error_type is ErrorType.WITHDRAWN
    assert "fused_moe_kernel" in failed.message
    assert "Required: 262144, Hardware limit: 232448" in failed.message
    assert (statuses(result)["serve"], result.exit_code) == ("ok", 11)
    assert result.verify and (result.verify.status, result.verify.new_files) == ("ok", 0)
    assert not (host.layout.profiles / PLACE).exists() or (host.layout.profiles / PLACE).read_bytes() != planted
    kept = list(host.cache.glob("tuning/*.withdrawn/E=*.json"))
    assert [path.read_bytes() for path in kept] == [planted]
    reason = json.loads(next(host.cache.glob("tuning/*.withdrawn/reason.json")).read_text())
    assert reason["files"] == {PLACE: digest_of(planted)}
    assert "Required: 262144" in reason["reason"]

    later = host.ensure("--random-seed=1", **asked)
    assert (statuses(later)["moe_tune"], later.stages[MOE].reason) == ("skipped", "withdrawn")
    assert "Required: 262144" in (later.stages[MOE].detail or "")
    assert (later.exit_code, statuses(later)["serve"]) == (0, "noop")
    other = host.ensure(**asked)
    assert statuses(other)["moe_tune"] == "skipped", "whatever the flags"
    assert (
        not host.layout.profiles.joinpath(PLACE).exists()
        or b"256" not in host.layout.profiles.joinpath(PLACE).read_bytes()
    )


def test_a_proof_withdraws_a_config_too(moe_host: MoeHost) -> None:
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    plant(host, listed=False)
    result = host.ensure(verify_only=True, model=asked["model"], ops=asked["ops"])
    assert result.verify and (result.verify.status, result.verify.new_files) == ("ok", 0), result.verify
    assert result.stages[MOE].error_type is ErrorType.WITHDRAWN
    later = host.ensure(**asked)
    assert (later.exit_code, later.stages[MOE].reason) == (0, "withdrawn")
    assert statuses(later)["serve"] == "noop"


@pytest.mark.slow  # by default one is withdrawn
def test_a_config_that_cannot_be_withdrawn_stays_with_its_completion(
    moe_host: MoeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    plant(host)
    before = everything(host)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "reason.json")

    with monkeypatch.context() as patch:
        patch.setattr(second_try, "withdraw", full)
        result = host.ensure("--random-seed=1", **(asked | Flags(ops=TUNED_BEFORE)))
    assert result.stages[SERVE].error_type is ErrorType.INSUFFICIENT_DISK
    assert everything(host)[PLACE] == before[PLACE]
    assert host.completion(MOE)


def test_the_withdrawal_names_the_tuner_that_made_the_config(moe_host: MoeHost) -> None:
    """A proof's request does not say it."""
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    completion = host.completion(MOE)
    assert completion and completion.tuning
    script = {"tuner_version": None, "grid": "that of /sglang/tuning.py"}
    tuning = completion.tuning.model_copy(update=script)
    write_completion(host.layout, completion.model_copy(update={"tuning": tuning}))
    plant(host, listed=False)
    result = host.ensure(verify_only=True, model=asked["model"], ops=asked["ops"])
    assert result.stages[MOE].error_type is ErrorType.WITHDRAWN
    reason = json.loads(next(host.cache.glob("tuning/*.withdrawn/reason.json")).read_text())
    assert reason["tuner"] == "/sglang/tuning.py"


@pytest.mark.parametrize("by_the_proof", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_that_is_stopped_says_what_it_has_withdrawn(moe_host: MoeHost, by_the_proof: bool) -> None:
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    plant(host)

    def withdrawn() -> bool:
        return any(host.cache.glob("tuning/*.withdrawn/reason.json"))

    flags = () if by_the_proof else ("--random-seed=1",)
    asked |= Flags(ops=TUNED_BEFORE)
    result = host.ensure(*flags, verify_only=by_the_proof, cancelled=withdrawn, **asked)
    assert result.exit_code == 130
    assert result.stages[MOE].error_type is ErrorType.WITHDRAWN
    assert host.completion(MOE) is None


def test_an_interrupt_after_a_withdrawal_is_one(moe_host: MoeHost) -> None:
    """The proof goes on without the config, and is stopped."""
    host = moe_host
    asked = request_of(host)
    assert host.ensure(**asked).exit_code == 0
    plant(host)

    def proving() -> bool:
        return any(event.name == VERIFY for event in host.events)

    result = host.ensure("--random-seed=1", cancelled=proving, **(asked | Flags(ops=TUNED_BEFORE)))
    assert result.stages[MOE].error_type is ErrorType.WITHDRAWN
    assert result.exit_code == 130
