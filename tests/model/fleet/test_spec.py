"""Which nodes take part, and what the fleet's result says of itself."""

from collections.abc import Mapping

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.model.fleet.result import FleetError, FleetHost, FleetResult, closed, end_of
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.fleet.spec import FleetSpec, NodeInfo, choose_nodes, nodes_of, parse_labels
from rayprep.model.fleet.status import FleetStatus
from rayprep.model.proof import VerifyResult, skipped
from rayprep.model.result import RunStatus
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import StageName, StageStatus
from rayprep.report.fleet_view import rows
from tests.model.samples import fleet_run, prep_result

CUDA, CPU = DeviceChoice.AUTO, DeviceChoice.CPU


def listed(name: str, *, alive: bool = True, gpus: float = 0, labels: Mapping[str, str] = {}) -> dict[str, object]:
    """As `ray.nodes()` of 2.60 lists a node."""
    return {
        "NodeID": f"id-{name}",
        "Alive": alive,
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerHostname": name,
        "NodeManagerPort": 1234,
        "Resources": {"CPU": 4.0, **({"GPU": gpus} if gpus else {})},
        "Labels": labels,
    }


def nodes(*each: dict[str, object]) -> tuple[NodeInfo, ...]:
    return nodes_of(each)


def hosts(chosen: tuple[NodeInfo, ...]) -> list[str]:
    return [node.host for node in chosen]


def test_living_nodes_with_gpus_by_default_and_all_for_the_cpu() -> None:
    found = nodes(listed("head"), listed("b", gpus=4), listed("a", gpus=4), listed("dead", alive=False, gpus=4))
    assert hosts(choose_nodes(found, FleetSpec(), CUDA)) == ["a", "b"]
    assert hosts(choose_nodes(found, FleetSpec(), CPU)) == ["a", "b", "head"]
    assert hosts(choose_nodes(found, FleetSpec(nodes=("head",)), CUDA)) == ["head"]
    assert hosts(choose_nodes(found, FleetSpec(exclude=("a",)), CUDA)) == ["b"]


def test_a_label_names_a_host_and_labels_choose() -> None:
    found = nodes(
        listed("vm", gpus=1, labels={"rayprep-host": "one", "pool": "x"}), listed("vm", gpus=1, labels={"pool": "y"})
    )
    assert hosts(choose_nodes(found, FleetSpec(labels={"pool": "x"}), CUDA)) == ["one"]


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(BadRequest, match="two nodes are both called vm"):
        choose_nodes(nodes(listed("vm", gpus=1), listed("vm", gpus=1)), FleetSpec(), CUDA)


def test_no_node_left_and_unknown_names() -> None:
    with pytest.raises(HostUnfit, match="no living node of the cluster has a GPU"):
        choose_nodes(nodes(listed("head")), FleetSpec(), CUDA)
    with pytest.raises(HostUnfit, match="no node is left") as caught:
        choose_nodes(nodes(listed("head")), FleetSpec(exclude=("head",)), CPU)
    assert "--device" not in caught.value.hint
    with pytest.raises(BadRequest, match="no living node gpu-9"):
        choose_nodes(nodes(listed("head")), FleetSpec(exclude=("gpu-9",)), CPU)


def test_labels_are_pairs() -> None:
    assert parse_labels(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(BadRequest):
        parse_labels(["=b"])


def result(*members: FleetHost, errors: tuple[FleetError, ...] = (), status: RunStatus = RunStatus.OK) -> FleetResult:
    named = {f"h{number}": member for number, member in enumerate(members)}
    return FleetResult(status=status, run=fleet_run(run_id="r"), hosts=named, errors=errors, waves=(tuple(named),))


def member(state: HostPhase, error: FleetError | None = None, **more: object) -> FleetHost:
    return FleetHost(node_id="n", address="a", state=state, error=error).model_copy(update=more)


def error(kind: ErrorType, code: int, stage: StageName | None = None) -> FleetError:
    return FleetError(error_type=kind, message="why", exit_code=code, stage=stage)


SERVE = error(ErrorType.SERVER_CRASHED, 14, StageName.SERVE)
GEMM = error(ErrorType.COMPILE_FAILED, 10, StageName.DEEP_GEMM)
LOST = error(ErrorType.NODE_LOST, 3)


@pytest.mark.parametrize(
    ("members", "errors", "status", "code"),
    [
        ([member(HostPhase.VERIFIED)], (), RunStatus.OK, 0),
        ([member(HostPhase.VERIFIED, GEMM)], (), RunStatus.OK, 0),  # made good by a second attempt
        ([member(HostPhase.FAILED, SERVE), member(HostPhase.FAILED, GEMM)], (), RunStatus.ERROR, 10),
        ([member(HostPhase.LOST, LOST), member(HostPhase.VERIFIED)], (), RunStatus.PARTIAL, 3),
        ([member(HostPhase.LOST, LOST), member(HostPhase.FAILED, SERVE)], (), RunStatus.ERROR, 14),
        ([member(HostPhase.WAITING)], (error(ErrorType.INTERRUPTED, 130),), RunStatus.PARTIAL, 130),
        ([member(HostPhase.WAITING)], (), RunStatus.PARTIAL, 3),
    ],
)
def test_the_exit_code_is_the_first_failing_stages(
    members: list[FleetHost], errors: tuple[FleetError, ...], status: RunStatus, code: int
) -> None:
    assert result(*members, errors=errors, status=status).exit_code == code


def test_the_status_line_counts_hosts_by_state_and_stage() -> None:
    built = member(HostPhase.VERIFIED, stages={StageName.SERVE: StageStatus.OK}, verify="ok")
    received = member(HostPhase.VERIFIED, stages={StageName.SERVE: StageStatus.NOOP}, verify="ok")
    lost = member(HostPhase.LOST, LOST)
    line = result(built, received, lost, status=RunStatus.PARTIAL).status_line
    assert line == "partial hosts:lost=1,verified=2 serve:noop=1,ok=1 verify:ok=2"


@pytest.mark.parametrize(
    ("proof", "state"),
    [
        (VerifyResult(ran=True, status="ok"), HostPhase.VERIFIED),
        (skipped("verified"), HostPhase.VERIFIED),
        (skipped("no_gpu"), HostPhase.READY),
        (None, HostPhase.READY),
    ],
)
def test_only_a_proof_that_stands_makes_a_host_verified(proof: VerifyResult | None, state: HostPhase) -> None:
    good = prep_result({StageName.SERVE: StageStatus.OK}).model_copy(update={"status": RunStatus.OK, "verify": proof})
    assert end_of(good) is state
    assert end_of(good.model_copy(update={"status": RunStatus.PARTIAL})) is HostPhase.FAILED


def test_status_shows_failures_first_and_an_estimate() -> None:
    done = member(HostPhase.VERIFIED, duration_s=60.0)
    found = result(done, member(HostPhase.RUNNING, doing="proves"), member(HostPhase.LOST, LOST))
    status = FleetStatus(run_id="r", taken_at="2026-11-22T00:00:00Z", result=found)
    assert [row[:4] for row in rows(status)] == [
        ("h2", "", "lost", "why"),
        ("h1", "", "running", "proves"),
        ("h0", "", "verified", ""),
    ]
    assert status.eta_s == 60.0
    assert FleetStatus(run_id="r", taken_at="2026-11-22T00:00:00Z").eta_s is None


@pytest.mark.parametrize(
    ("error", "state", "exit_code", "status"),
    [
        (HostUnfit("gone", error_type=ErrorType.NODE_LOST), HostPhase.LOST, 3, RunStatus.ERROR),
        (Interrupted(), HostPhase.FAILED, 130, RunStatus.PARTIAL),
    ],
)
def test_a_result_that_its_driver_cannot_end_any_more(
    error: RayprepError, state: HostPhase, exit_code: int, status: RunStatus
) -> None:
    hosts = {
        name: FleetHost(node_id=name, address="10.0.0.1", state=phase, doing="serve")
        for name, phase in (("at-work", HostPhase.RUNNING), ("next", HostPhase.WAITING), ("bad", HostPhase.FAILED))
    }
    left = FleetResult(run=fleet_run(run_id="r"), hosts=hosts)
    result = closed(left, error, "2026-11-30T12:00:00Z")
    assert {name: host.state for name, host in result.hosts.items()} == {
        **{"at-work": state, "next": HostPhase.WAITING, "bad": HostPhase.FAILED}
    }
    at_work = result.hosts["at-work"]
    assert (at_work.error and at_work.error.error_type, at_work.doing) == (error.error_type, "")
    assert (result.exit_code, result.status) == (exit_code, status)
    assert result.run.finished_at == "2026-11-30T12:00:00Z"


def test_a_host_that_ended_well_makes_it_partial() -> None:
    hosts = {"good": FleetHost(node_id="id", address="10.0.0.1", state=HostPhase.READY)}
    left = FleetResult(run=fleet_run(run_id="r"), hosts=hosts)
    result = closed(left, HostUnfit("gone", error_type=ErrorType.NODE_LOST), "2026-11-30T12:00:00Z")
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 3)
    assert result.hosts == hosts
