"""A fleet whose parts die, freeze or get in each other's way: what is left is true, and the next run ends well."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.fleet import actors
from rayprep.fleet.actors import living_nodes, start_agent
from rayprep.fleet.agent.lease_holder import Leases, Wanted
from rayprep.fleet.agent.messages import Asked
from rayprep.fleet.remote_host import Member
from rayprep.fleet.result_writer import FleetRecord
from rayprep.host.layout import Layout
from rayprep.model.fleet.leases import Queued
from rayprep.model.fleet.rollout import Rollout
from rayprep.model.fleet.spec import FleetSpec
from rayprep.model.spec import resolve
from rayprep.model.stages import StageName, StageStatus
from rayprep.report.fleet_view import FleetLineView
from tests.fleet.damages_one import DamagesOne
from tests.fleet.faults import (
    PROBE,
    Run,
    agents_of,
    all_is_well,
    empty,
    held_builder,
    hold,
    left,
    left_on,
    on,
    ours,
    release,
    valid,
)
from tests.fleet.fleet import FP8_MODEL, KERNELS, STAND_IN, Fleet, Node, fleet_of
from tests.host.test_ports import free_port
from tests.model.samples import prep_result
from tests.processes import import_s, wait_for
from tests.store.caches import built

pytestmark = pytest.mark.ray

TTL_S = 6.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("two")
    nodes = (Node(f"gpu-{index}", base / f"n{index}") for index in range(2))
    with fleet_of(base, *nodes, ttl_s=TTL_S) as fleet:
        yield fleet


@pytest.fixture
def two(cluster: Fleet) -> Iterator[Fleet]:
    """Two hosts with empty caches."""
    empty(cluster)
    yield cluster
    cluster.end_drivers()
    release(cluster)
    wait_for(lambda: not left(cluster), "nothing of a run to be left")


def test_a_builder_dies_and_the_other_host_builds(two: Fleet) -> None:
    hold(two)
    run = Run(two, "killed")
    builder = held_builder(two, run)
    (agent,) = agents_of(builder)
    agent.kill()
    release(two)
    assert run.wait() == 0, run.text
    hosts = two.result("killed")["hosts"]
    other = next(name for name in hosts if name != builder.name)
    assert {host["state"] for host in hosts.values()} == {"verified"}
    assert hosts[other]["built"] == ["serve"]
    assert (hosts[builder.name]["attempts"], hosts[builder.name]["received"][0]["source"]) == (2, other)
    assert not run.said('"phase":"wait_lock"', '"message":"lease'), "a dead agent's leases are given back at once"
    strange = [line for line in run.lines if not line.startswith(("OPTIMIZE_JSON ", "RESULT_"))]
    assert not strange, "Ray has something to say of the dead, and must not say it there"


@pytest.mark.slow  # by default a builder dies, and another host builds
def test_a_host_is_lost_for_good_and_the_others_end_well(two: Fleet) -> None:
    hold(two)
    run = Run(two, "lost")
    builder = held_builder(two, run)
    two.cluster.remove_node(builder.ray_node, allow_graceful=False)
    wait_for(lambda: not left_on(builder), "the lost host's work to end, or it would publish")
    release(two)
    assert run.wait() == 3, run.text
    found = two.result("lost")
    assert found["status"] == "partial"
    gone = found["hosts"][builder.name]
    assert (gone["state"], gone["error"]["error_type"]) == ("lost", "node_lost")
    other = next(name for name in found["hosts"] if name != builder.name)
    assert found["hosts"][other]["state"] == "verified"
    # It comes back under a new node id, and only it works.
    two.add(builder)
    all_is_well(two, "returned")
    again = two.result("returned")["hosts"][builder.name]
    assert (again["node_id"] != gone["node_id"], [each["source"] for each in again["received"]]) == (True, [other])


@pytest.mark.slow
def test_a_helper_dies_in_its_part_of_a_build(two: Fleet) -> None:
    """It comes back and begins its part anew; what the publisher compiles meanwhile is compiled once."""
    hold(two)
    asked = ("--model", str(FP8_MODEL), "--deep-gemm", "--no-verify", "--deal-from", "0")
    run = Run(two, "helped", asked=asked)
    publisher, helper = two.nodes.values()
    wait_for(lambda: publisher.compiles and helper.compiles, "both to compile")
    (agent,) = agents_of(helper)
    agent.kill()
    wait_for(lambda: agents_of(helper) not in ([], [agent]), "it to have another agent")
    release(two)
    assert run.wait() == 0, run.text
    hosts = two.result("helped")["hosts"]
    assert [host["state"] for host in hosts.values()] == ["ready", "ready"]
    assert (hosts[publisher.name]["built"], hosts[helper.name]["attempts"]) == (["deep_gemm"], 2)
    assert len(publisher.compiles) == KERNELS // 2, "its own part, once"
    assert KERNELS // 2 < len(helper.compiles) <= KERNELS, "and what was aborted"
    assert publisher.artifacts() == helper.artifacts() != {}


def test_the_coordinator_dies_and_the_work_goes_on(two: Fleet) -> None:
    hold(two)
    run = Run(two, "headless")
    held_builder(two, run)
    (coordinator,) = ours("ray::Coordinator")
    coordinator.kill()
    release(two)
    assert run.wait() == 0, run.text
    assert {host["state"] for host in two.result("headless")["hosts"].values()} == {"verified"}


def test_the_driver_is_killed_and_nothing_goes_on(two: Fleet) -> None:
    hold(two)
    run = Run(two, "orphan")
    builder = held_builder(two, run)
    run.process.kill()
    run.process.wait(10)
    wait_for(lambda: not left(two), "the hosts' work to end with its driver")
    release(two)
    assert list(builder.layout.markers.glob("*/serve")), "what was half done is marked"
    all_is_well(two, "after")


def test_an_interrupt_ends_all_hosts(two: Fleet) -> None:
    hold(two)
    run = Run(two, "interrupted")
    held_builder(two, run)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 130, run.text
    found = two.result("interrupted")
    assert (found["status"], found["run"]["finished_at"] is not None) == ("partial", True)
    wait_for(lambda: not left(two), "all processes to be gone")
    release(two)


def test_two_drivers_at_once_build_once(two: Fleet) -> None:
    hold(two)
    first = Run(two, "first")
    held_builder(two, first)
    second = Run(two, "second")
    wait_for(lambda: second.said('"phase":"wait_lock"'), "the second to wait")
    release(two)
    assert (first.wait(), second.wait()) == (0, 0), first.text + second.text
    built = [host["built"] for run_id in ("first", "second") for host in two.result(run_id)["hosts"].values()]
    assert sorted(map(len, built)) == [0, 0, 0, 1]


@pytest.mark.slow  # by default a store refuses an older epoch, in store/test_epochs
@pytest.mark.parametrize("host", [pytest.param(False, id="agent"), pytest.param(True, id="host")])
def test_a_frozen_builder_cannot_publish(two: Fleet, host: bool) -> None:
    """SIGSTOP past its lease, then SIGCONT: another has built meanwhile, and it learns that it is late.

    A frozen agent learns it by its lease. With its raylet frozen beside it Ray gives up the whole host, and the raylet
    ends itself and its workers when it is thawed.
    """
    hold(two)
    run = Run(two, "frozen", "--node-retries", "0", "--timeout", "200")
    builder = held_builder(two, run)
    frozen = [*agents_of(builder), *(on(builder, "raylet/raylet") if host else ())]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    release(two)
    try:
        other = next(node for node in two.nodes.values() if node is not builder)
        second = two.ensure(*STAND_IN, "--nodes", other.name, run_id="overtakes", timeout=120)
        assert second.returncode == 0, second.stdout + second.stderr
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    run.wait()
    late = two.result("frozen")["hosts"][builder.name]
    assert late["state"] in ("failed", "lost"), run.text
    assert late["error"]["error_type"] in ("lease_lost", "node_lost")
    # Where Ray has given the host up, the other one may have built it for the first run, and the second found it.
    built = [two.result(run_id)["hosts"][other.name]["built"] for run_id in ("frozen", "overtakes")]
    assert sorted(built) == [[], ["serve"]]
    if host:
        wait_for(lambda: not on(builder, "raylet/raylet"), "the raylet to learn that it was given up")
        wait_for(lambda: not left(two), "what it had started to end")
        assert not valid(builder.layout), "what it was at is not finished, and not said to be"
        two.cluster.remove_node(builder.ray_node, allow_graceful=False)
        two.add(builder)
    all_is_well(two, "after")


def asked_for(run_id: str) -> Asked:
    return Asked(resolved=resolve({"model": "tiny-dense"}), run_id=run_id)


def test_a_damaged_package_is_a_fault_of_its_source(two: Fleet) -> None:
    """The receiver is well, and may ask another one."""
    import ray

    asked, nodes = asked_for("damaged"), {node.host: node for node in living_nodes()}
    receiver = start_agent(nodes["gpu-1"], two.coordinator)
    source = start_agent(nodes["gpu-0"], two.coordinator, DamagesOne)
    facts = ray.get(receiver.look.remote(asked), timeout=60).facts
    made = built(two.nodes["gpu-0"].layout, signature=facts.signature)
    calls = [receiver.take.remote(asked, "gpu-0", source, [(made.stage, made.key)]) for _ in range(2)]
    damaged, sound = ray.get(calls, timeout=60)
    assert damaged.source_problem.startswith("gpu-0: the package is refused: the content of torchinductor/ab/cab.so")
    assert sound.received.files == len(made.artifacts)
    assert two.nodes["gpu-1"].artifacts().keys() == made.artifacts.keys()
    for agent in (receiver, source):
        ray.kill(agent)
    wait_for(lambda: not ours("ray::HostAgent", "ray::DamagesOne"), "the agents to end")


def test_a_lease_file_that_cannot_be_written_is_named_and_waited_for(two: Fleet) -> None:
    folder = two.leases.parent
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.rename(folder.with_name("aside"))
    folder.touch()  # so that even root cannot make the folder anew
    said: list[str] = []

    def mend(_: Wanted, why: Queued | HostUnfit) -> None:
        assert isinstance(why, HostUnfit)
        folder.unlink()
        aside.rename(folder)

    def leases(waiting: Callable[[Wanted, Queued | HostUnfit], None], timeout_s: float) -> Leases:
        until = time.monotonic() + timeout_s
        return Leases(two.coordinator, PROBE, [("probed", "key")], lambda _: 0, waiting, lambda: False, until)

    with pytest.raises(HostUnfit) as raised, leases(lambda _, why: said.append(str(why)), 0.5):
        pass
    assert said
    for message in (*said, raised.value.message):
        assert message.startswith(f"lease file {two.leases} cannot be written: ")
    assert raised.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED
    with leases(mend, 60) as held:
        assert held.epochs == {"key": 1}


def test_a_lease_file_that_cannot_be_read_is_named(two: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "NAME", "another")  # beside the one that lives
    (tmp_path / "file").touch()
    with pytest.raises(HostUnfit) as raised:
        actors.join_coordinator(living_nodes(), tmp_path / "file" / "leases")
    assert raised.value.line == (
        f"the coordinator does not start on head: lease file {tmp_path}/file/leases cannot be read: Not a directory"
        " (make it readable on the cluster's head, or remove it there while no run goes on)"
    )
    assert raised.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED


def test_a_drivers_telemetry_root_that_fails_costs_its_files_and_not_the_run(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, asked = Layout(tmp_path / "p", tmp_path / "t"), asked_for("unwritten")
    layout.telemetry.touch()
    view = FleetLineView(sys.stdout, json_lines=False)
    record = FleetRecord(asked, FleetSpec(), two.address, layout, two.coordinator, view)
    record.host_line(Member(living_nodes()[0], two.coordinator), prep_result({StageName.SERVE: StageStatus.OK}))
    result = record.finish(Rollout(waves=()), {}, interrupted=False)
    two.coordinator.close_run.remote(asked.run_id)
    assert result.run.finished_at
    of_the_log, of_the_files = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "the work goes on, unlogged" in of_the_log
    for words in (f"telemetry root {layout.telemetry} cannot be used: Not a directory", "fleet_result.json", "1 more"):
        assert words in of_the_files


def test_a_wrong_address_is_one_line_within_ten_seconds(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "HOST_TELEMETRY_ROOT": str(tmp_path)}
    command = [sys.executable, "-m", "rayprep", "ensure", "--cluster", "--model", "tiny-dense", "--device", "cpu"]
    limit_s = 10 + 2 * import_s()
    for more, code, words in (
        (("--address", f"127.0.0.1:{free_port()}"), 3, "nothing answers"),
        (("--address", "nonsense"), 3, "not HOST:PORT"),
        ((), 2, "needs the cluster's address"),
        (None, 2, "needs the cluster's address"),
    ):
        asked = [*command[:3], "status"] if more is None else [*command, *more]  # which has no --cluster
        done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
        assert "--cluster" not in done.stderr
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert words in done.stderr
