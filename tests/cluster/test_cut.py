"""A network that is cut while a fleet is prepared, and healed: three hosts with addresses and cables of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayprep.host.environment import STORE_MARK, store_mark
from rayprep.host.process import marked_processes
from tests.cluster.hosts import STEP_S, Hosts
from tests.events import events_in
from tests.fleet.faults import valid
from tests.fleet.fleet import STAND_IN, Node
from tests.needs import needs_hosts
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.namespaces, needs_hosts()]

BARE = Path(__file__).parents[2] / "cluster" / "bare"
HEAD, *WORKERS = "gh-1", "gh-2", "gh-3"
ADDRESS = "10.77.0.1:6379"


class Site:
    """A head and two workers, started as `cluster/bare` does."""

    def __init__(self, base: Path, hosts: Hosts) -> None:
        self.base, self.hosts = base, hosts
        self.nodes = {name: Node(name, base / name) for name in hosts.addresses}
        self.done("head", HEAD, "--num-gpus=0")
        for name in WORKERS:
            token = self._token(name)
            token.parent.mkdir(parents=True)
            shutil.copy2(self._token(HEAD), token)
            self.done("worker", name, "--num-gpus=1")

    def env(self, name: str) -> dict[str, str]:
        node, folder = self.nodes[name], self.base / name
        return {
            **os.environ,
            **node.env,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAYPREP_ADDRESS": ADDRESS,
            "RAYPREP_RAY_FOLDER": str(folder / "ray"),
            "RAYPREP_OBJECT_STORE_BYTES": str(80 << 20),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token(name)),
        }

    def _token(self, name: str) -> Path:
        return self.base / name / "home" / ".rayprep" / "ray-token"

    def done(self, script: str, name: str, *args: str) -> None:
        started = self.hosts.start(name, BARE / script, *args, env=self.env(name))
        said, _ = started.communicate(timeout=STEP_S)
        assert started.returncode == 0, said

    def start(self, run_id: str, *args: str) -> subprocess.Popen[str]:
        """`ensure --cluster` from the head."""
        asked = ("ensure", "--cluster", "--address", ADDRESS, "--model", "tiny-dense", "--verify", "none", *STAND_IN)
        command = (sys.executable, "-m", "rayprep", *asked, "--run-id", run_id, *args)
        return self.hosts.start(HEAD, *command, env=self.env(HEAD))

    def ensure(self, run_id: str, *args: str) -> tuple[int, dict[str, Any]]:
        """Its exit status, and what it says of each host."""
        return self.ended(self.start(run_id, *args), run_id)

    def ended(self, run: subprocess.Popen[str], run_id: str) -> tuple[int, dict[str, Any]]:
        said, _ = run.communicate(timeout=240)
        path = self.nodes[HEAD].layout.telemetry / "container_runs" / run_id / "fleet_result.json"
        assert path.exists(), said
        hosts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["hosts"]
        return run.returncode, hosts

    def builder(self, run_id: str) -> str | None:
        """Who has begun to build."""
        log = self.nodes[HEAD].layout.telemetry / "logs" / f"{run_id}.log"
        events = events_in(log) if log.exists() else []
        hints = (event["host"] for event in events if event.get("hint") == "starting the warm-up server")
        return next(hints, None)


@pytest.fixture
def site(base: Path) -> Iterator[Site]:
    with Hosts(HEAD, *WORKERS) as hosts:
        yield Site(base, hosts)


def test_a_host_that_is_cut_off_while_it_builds(site: Site) -> None:
    """It is given up, another builds, and what it goes on with by itself does not count."""
    for name in WORKERS:
        site.nodes[name].hold.touch()
    run = site.start("cut", "--node-retries", "0")
    wait_for(lambda: site.builder("cut"), "a builder to begin", 120)
    builder = site.nodes[site.builder("cut") or ""]
    other = next(name for name in WORKERS if name != builder.name)
    site.hosts.plug(builder.name, "down")
    site.nodes[other].hold.unlink()
    code, hosts = site.ended(run, "cut")
    assert (code, hosts[builder.name]["state"], hosts[other]["state"]) == (3, "lost", "ready")
    assert hosts[builder.name]["error"]["error_type"] == "node_lost"
    assert hosts[other]["built"] == ["serve"]

    builder.hold.unlink()
    wait_for(lambda: not marked_processes(STORE_MARK, store_mark(builder.layout)), "what it was at to end")
    assert not valid(builder.layout)
    site.hosts.plug(builder.name, "up")
    site.done("stop", builder.name)
    site.done("worker", builder.name, "--num-gpus=1")
    code, again = site.ensure("healed")
    assert (code, again[builder.name]["state"]) == (0, "ready")
    assert [each["source"] for each in again[builder.name]["received"]] == [other]
    assert again[builder.name]["node_id"] != hosts[builder.name]["node_id"]


def test_a_cut_between_two_hosts_that_both_reach_the_head(site: Site) -> None:
    """The one that cannot receive builds for itself."""
    source, receiver = WORKERS
    assert site.ensure("source", "--nodes", source)[0] == 0
    site.hosts.route("add", source, receiver)
    code, hosts = site.ensure("cut")
    assert (code, hosts[receiver]["built"], hosts[receiver]["received"]) == (0, ["serve"], [])
    site.hosts.route("del", source, receiver)
    code, hosts = site.ensure("healed")
    assert (code, [hosts[name]["stages"]["serve"] for name in WORKERS]) == (0, ["noop", "noop"])
