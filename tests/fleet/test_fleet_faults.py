"""A fleet whose parts die, freeze or get in each other's way: what is left is true, and the next run ends well."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayprep.host.environment import STORE_MARK, store_mark
from rayprep.host.process import marked_processes
from tests.fleet.fleet import STAND_IN, Fleet, Node, actors, fleet_of
from tests.host.test_ports import free_port
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("fleet-faults")]


class Run:
    """A run of `ensure --cluster` that goes on beside the test; what it prints is read as it comes."""

    def __init__(self, fleet: Fleet, run_id: str, *args: str) -> None:
        self.process = fleet.start(*STAND_IN, "--json", "--warmup-port", str(free_port()), *args, run_id=run_id)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def said(self, *words: str) -> str | None:
        """The first line with all `words`."""
        return next((line for line in list(self.lines) if all(word in line for word in words)), None)

    def wait(self, timeout: float = 150) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    @property
    def text(self) -> str:
        assert self.process.stderr is not None
        return "".join(self.lines) + (self.process.stderr.read() if self.process.poll() is not None else "")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("two")
    with fleet_of(base, *(Node(f"gpu-{index}", base / f"n{index}") for index in range(2))) as fleet:
        yield fleet


@pytest.fixture
def two(cluster: Fleet) -> Iterator[Fleet]:
    """Two hosts with empty caches."""
    for node in cluster.nodes.values():
        shutil.rmtree(node.layout.profiles)
        node.layout.profiles.mkdir()
    yield cluster
    release(cluster)
    wait_for(lambda: not left(cluster), "nothing of a run to be left")


def left(fleet: Fleet) -> list[psutil.Process]:
    """What works in a host's store, with its guards."""
    marks = [store_mark(node.layout) for node in fleet.nodes.values()]
    return [process for mark in marks for process in marked_processes(STORE_MARK, mark)]


def agents_of(node: Node) -> list[psutil.Process]:
    """The agents' processes of one host, told by its environment."""
    found = []
    for process in actors("ray::HostAgent"):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(node.base / "home"):
                found.append(process)
    return found


def held_builder(fleet: Fleet, run: Run) -> Node:
    """The host whose warm-up server waits; both were held."""
    wait_for(lambda: run.said('"name":"serve"', '"hint":"starting the warm-up server"'), "a builder to begin")
    line = run.said('"name":"serve"', '"hint":"starting the warm-up server"')
    assert line is not None
    return next(node for name, node in fleet.nodes.items() if f'"host":"{name}"' in line)


def hold(fleet: Fleet) -> None:
    for node in fleet.nodes.values():
        node.hold.touch()


def release(fleet: Fleet) -> None:
    for node in fleet.nodes.values():
        node.hold.unlink(missing_ok=True)


def all_is_well(fleet: Fleet, run_id: str) -> None:
    """The next run ends ok, on every host that the cluster has, and leaves no marker."""
    done = fleet.ensure(*STAND_IN, run_id=run_id)
    assert done.returncode == 0, done.stdout + done.stderr
    for node in fleet.nodes.values():
        assert not list(node.layout.markers.glob("*/*"))


def test_a_builder_dies_and_the_other_host_builds(two: Fleet) -> None:
    hold(two)
    run = Run(two, "killed")
    builder = held_builder(two, run)
    (agent,) = agents_of(builder)
    release(two)
    agent.kill()
    assert run.wait() == 0, run.text
    hosts = two.result("killed")["hosts"]
    other = next(name for name in hosts if name != builder.name)
    assert {host["state"] for host in hosts.values()} == {"verified"}
    assert hosts[other]["built"] == ["serve"]
    assert (hosts[builder.name]["attempts"], hosts[builder.name]["received"][0]["source"]) == (2, other)
    assert not run.said('"phase":"wait_lock"', '"message":"lease'), "a dead agent's leases are given back at once"


def test_a_host_is_lost_for_good_and_the_others_end_well(two: Fleet) -> None:
    hold(two)
    run = Run(two, "lost")
    builder = held_builder(two, run)
    release(two)
    two.cluster.remove_node(builder.ray_node, allow_graceful=False)
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


def test_the_coordinator_dies_and_the_work_goes_on(two: Fleet) -> None:
    hold(two)
    run = Run(two, "headless")
    held_builder(two, run)
    (coordinator,) = actors("ray::Coordinator")
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


def test_a_frozen_builder_cannot_publish(two: Fleet) -> None:
    """SIGSTOP past its lease, then SIGCONT: another has built meanwhile, and it learns that it is late."""
    hold(two)
    run = Run(two, "frozen", "--node-retries", "0", "--timeout", "200")
    builder = held_builder(two, run)
    agents = agents_of(builder)
    for process in agents:
        process.send_signal(signal.SIGSTOP)
    release(two)
    try:
        other = next(node for node in two.nodes.values() if node is not builder)
        second = two.ensure(*STAND_IN, "--nodes", other.name, run_id="overtakes", timeout=120)
        assert second.returncode == 0, second.stdout + second.stderr
        assert two.result("overtakes")["hosts"][other.name]["built"] == ["serve"]
    finally:
        for process in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    run.wait()
    late = two.result("frozen")["hosts"][builder.name]
    assert late["state"] in ("failed", "lost"), run.text
    assert late["error"]["error_type"] in ("lease_lost", "node_lost")
    all_is_well(two, "after")


def test_a_wrong_address_is_one_line_within_ten_seconds(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "HOST_TELEMETRY_ROOT": str(tmp_path)}
    command = [sys.executable, "-m", "rayprep", "ensure", "--cluster", "--model", "tiny-dense", "--device", "cpu"]
    for more, code, words in (
        (("--address", f"127.0.0.1:{free_port()}"), 3, "nothing answers"),
        (("--address", "nonsense"), 3, "not HOST:PORT"),
        ((), 2, "needs the cluster's address"),
    ):
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=10, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert words in done.stderr
