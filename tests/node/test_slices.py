"""Several servers at once, each on GPUs of its own: the proof of a host's slices."""

import threading
from collections.abc import Iterator

import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.model.proof import VerifyResult
from rayprep.model.result import RunStatus
from tests.node.serving import LIBRARY, Host


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with two GPUs on which everything is built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LIBRARY)
        host = Host(tmp_path_factory.mktemp("slices"), gpu_count=2)
        assert host.ensure(verify=False).exit_code == 0
        host.keep()
        yield host
        assert host.processes() == []


@pytest.fixture
def host(built: Host) -> Host:
    built.restore()
    return built


def servers(host: Host) -> int:
    return sum(each.cmdline()[1:4] == ["-P", "-m", "sglang.launch_server"] for each in host.processes())


def said(host: Host, log: str) -> dict[str, str]:
    """The variables of one server, as it said them."""
    lines = host.log(log).read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(line.split("=", 1) for line in lines if line.startswith(("CUDA_VISIBLE_DEVICES=", "HOME=")))


def failed(verify: VerifyResult | None) -> VerifyResult:
    assert verify is not None
    assert verify.status == "error"
    return verify


def test_every_slice_is_proved_at_the_same_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = host.base / "hold"
    hold.touch()
    monkeypatch.setenv("FAKE_HOLD", str(hold))
    monkeypatch.setenv("FAKE_SHOWS", "CUDA_VISIBLE_DEVICES HOME")

    def both_are_there() -> bool:
        if hold.exists() and servers(host) == 2:
            hold.unlink(missing_ok=True)
        return False

    result = host.ensure(slices="all", cancelled=both_are_there)
    assert (result.status, result.errors) == (RunStatus.OK, ())
    verify = result.verify
    assert verify is not None
    assert (verify.status, verify.new_files, verify.jit_events) == ("ok", 0, 0)
    first, second = verify.slices
    assert ((first.index, first.gpus), (second.index, second.gpus)) == ((0, (0,)), (1, (1,)))
    assert {first.status, second.status} == {"ok"}
    assert first.port is not None
    assert second.port is not None
    assert first.port > second.port, "each has ports of its own"
    assert (verify.port, verify.warmup_pid) == (first.port, first.warmup_pid)
    assert first.warmup_pid != second.warmup_pid
    assert verify.ready_s == max(each.ready_s or 0 for each in verify.slices)
    one, other = said(host, "verify"), said(host, "verify-1")
    assert (one["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]) == ("0", "1")
    assert one["HOME"] != other["HOME"]
    completion = host.completion()
    assert completion is not None
    assert completion.verification is not None
    assert completion.verification.slices == 2
    assert any(event.hint and event.hint.startswith("slice 1: ") for event in host.events)


def test_the_slice_that_fails_is_named_and_the_others_go_on(host: Host) -> None:
    result = host.ensure(verify_only=True, slices=2, faults="dies-on-request@1")
    verify = failed(result.verify)
    assert verify.error_type is ErrorType.SERVER_CRASHED
    assert [each.status for each in verify.slices] == ["ok", "error"]
    assert verify.slices[1].error_type is ErrorType.SERVER_CRASHED
    assert (verify.message or "").startswith("slice 1 (GPU 1): the warm-up server ended by signal 9")
    assert result.errors[0].message == verify.message
    assert host.markers() == ["serve"]


def test_what_one_slice_leaves_in_its_home_is_its_own(host: Host) -> None:
    verify = failed(host.ensure(verify_only=True, slices=2, faults="litters@1").verify)
    assert verify.error_type is ErrorType.VERIFY_FAILED
    assert [(each.cache, each.path) for each in verify.new] == [("home", ".cache/somebody/kernel.bin")]
    assert [each.message for each in verify.slices] == [
        None,
        "it left 1 files in its HOME, first .cache/somebody/kernel.bin",
    ]


def test_a_cancelled_run_ends_every_server(host: Host) -> None:
    asked = threading.Event()

    def once_both_are_there() -> bool:
        if servers(host) == 2:
            asked.set()
        return asked.is_set()

    result = host.ensure(verify_only=True, slices=2, faults="never-ready", cancelled=once_both_are_there)
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 130)


def test_more_slices_than_fit_are_refused_before_anything_is_done(host: Host) -> None:
    with pytest.raises(HostUnfit, match="3 slices at tp 1 need 3 GPUs, this host has 2"):
        host.ensure(slices=3)
