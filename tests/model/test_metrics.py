"""What monitoring is told of a result."""

from rayprep.model.fleet.result import FleetHost
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.metrics import (
    HOSTS,
    METRICS,
    SHIPPED,
    WAITED,
    Sample,
    fleet_samples,
    host_samples,
    merge,
    state_samples,
)
from rayprep.model.proof import VerifyResult
from rayprep.model.result import Artifacts, Received, StageResult
from rayprep.model.stages import StageName, StageStatus
from tests.model.samples import prep_result, stage_result


def shown(samples: list[Sample]) -> dict[tuple[str, ...], float]:
    return {(each.metric.name.removeprefix("rayprep_"), *each.labels): each.value for each in samples}


def test_a_hosts_stages_its_proof_and_its_waiting() -> None:
    ran = StageResult(ran=True, status=StageStatus.OK, status_code=0, duration_s=9.5)
    artifacts = Artifacts(units=("a", "b", "c"), built=("a",))
    found = stage_result(StageStatus.NOOP, StageName.FLASHINFER).model_copy(
        update={"artifacts": Artifacts(units=("x", "y"))}
    )
    result = prep_result({StageName.INDUCTOR: StageStatus.SKIPPED}).model_copy(
        update={
            "stages": {
                StageName.DEEP_GEMM: ran.model_copy(update={"artifacts": artifacts}),
                StageName.FLASHINFER: found,
                StageName.INDUCTOR: stage_result(StageStatus.SKIPPED, StageName.INDUCTOR),
            },
            "verify": VerifyResult(ran=True, status="error", duration_s=2.0),
            "waited_s": 1.25,
        }
    )
    assert shown(host_samples(result)) == {
        ("lease_wait_seconds_total", "host-1"): 1.25,
        ("stage_duration_seconds", "host-1", "deep_gemm", "ok"): 9.5,
        ("kernels_built_total", "host-1", "deep_gemm"): 1,
        ("kernels_reused_total", "host-1", "deep_gemm"): 2,
        ("kernels_built_total", "host-1", "flashinfer"): 0,
        ("kernels_reused_total", "host-1", "flashinfer"): 2,
        ("stage_duration_seconds", "host-1", "verify", "error"): 2.0,
    }


def test_what_a_host_built_for_another_and_was_sent() -> None:
    """Its own result, at the end, has only what it found ready."""
    sent = tuple(Received(source="host-2", stages=(), files=1, bytes=size, duration_s=1.0) for size in (3, 4))
    helper = FleetHost(node_id="", address="", received=sent, helped_kernels={StageName.DEEP_GEMM: 5})
    other = FleetHost(node_id="", address="")
    assert shown([*fleet_samples({"host-1": helper, "host-2": other})]) == {
        ("shipped_bytes_total", "host-1"): 7,
        ("kernels_built_total", "host-1", "deep_gemm"): 5,
        ("shipped_bytes_total", "host-2"): 0,
    }


def test_every_state_is_there_so_that_none_stays_as_it_was() -> None:
    hosts = [FleetHost(state=state, node_id="", address="") for state in (HostPhase.VERIFIED, HostPhase.LOST)]
    assert shown(state_samples([*hosts, hosts[0]])) == {
        ("hosts", "waiting"): 0,
        ("hosts", "running"): 0,
        ("hosts", "verified"): 2,
        ("hosts", "ready"): 0,
        ("hosts", "failed"): 0,
        ("hosts", "lost"): 1,
    }


def test_counters_add_up_and_gauges_follow() -> None:
    earlier = [WAITED.sample(2, "a"), SHIPPED.sample(5, "b"), HOSTS.sample(3, "lost")]
    later = [WAITED.sample(1, "a"), WAITED.sample(4, "c"), HOSTS.sample(0, "lost")]
    assert shown(merge(earlier, later)) == {
        ("lease_wait_seconds_total", "a"): 3,
        ("shipped_bytes_total", "b"): 5,
        ("hosts", "lost"): 0,
        ("lease_wait_seconds_total", "c"): 4,
    }


def test_names_say_their_unit() -> None:
    assert all(each.name.startswith("rayprep_") and each.help.endswith(".") for each in METRICS)
    units = ("_seconds", "_total", "_hosts")
    assert [each.name for each in METRICS if not each.name.endswith(units)] == []
