"""A fleet's hosts and their SGLang: one of each kind is asked, and all of the kind plan by its answer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet.fleet import FAKES, Fleet, Node, fleet_of
from tests.needs import needs_torch
from tests.node.test_inventory import MODEL
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, needs_torch()]

EXPECTED = {"noop", "skipped"}
FLAGS = ("--server-arg=--compile", "--skip", "deep_gemm", "--skip", "moe_tune", "--skip", "flashinfer")


def who_asked(fleet: Fleet, run_id: str) -> list[str]:
    return [name for name, node in fleet.nodes.items() if (node.layout.run(run_id) / "inventory.log").exists()]


def model(base: Path, **changes: object) -> str:
    folder = base / "played"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**MODEL, **changes}), encoding="utf-8")
    return str(folder)


@contextmanager
def two_hosts(base: Path) -> Iterator[Fleet]:
    libraries = (FAKES / "asked_lib", FAKES / "sglang_lib")
    hosts = [Node(f"gpu-{index}", base / f"n{index}", libraries=libraries) for index in range(2)]
    with fleet_of(base, *hosts) as fleet:
        yield fleet


def kept(node: Node) -> object:
    (completion,) = (node.layout.profiles / ".rayprep" / "serve").glob("*.json")
    return json.loads(completion.read_text(encoding="utf-8"))["inventory"]["architecture"]


@pytest.mark.slow
def test_where_the_host_that_asks_is_lost_another_one_asks(tmp_path: Path) -> None:
    asked = model(tmp_path, play="waits", until=str(tmp_path / "go"))
    with two_hosts(tmp_path) as fleet:
        run = fleet.start("--model", asked, *FLAGS, run_id="lost")
        wait_for(lambda: who_asked(fleet, "lost"), "a host to ask")
        (first,) = who_asked(fleet, "lost")
        fleet.cluster.remove_node(fleet.nodes[first].ray_node, allow_graceful=False)
        wait_for(lambda: len(who_asked(fleet, "lost")) == 2, "the other host to ask", timeout_s=90)
        (tmp_path / "go").touch()
        assert run.wait(120) == 3
        hosts = fleet.result("lost")["hosts"]
        (other,) = set(hosts) - {first}
        assert (hosts[first]["state"], hosts[other]["state"]) == ("lost", "verified")
        assert kept(fleet.nodes[other]) == "PlayedForCausalLM"


def test_one_host_of_a_kind_asks_its_sglang(tmp_path: Path) -> None:
    folder = model(tmp_path)
    with two_hosts(tmp_path) as fleet:
        done = fleet.ensure("--model", folder, *FLAGS, run_id="first")
        again = fleet.ensure("--model", folder, *FLAGS, run_id="again")
        asked = who_asked(fleet, "first"), who_asked(fleet, "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.returncode == 0, again.stdout + again.stderr
    assert (len(asked[0]), asked[1]) == (1, [])
    for node in fleet.nodes.values():
        assert kept(node) == "PlayedForCausalLM", "who receives has the answer too"
        assert {stage["status"] for stage in fleet.host_result("again", node.name)["stages"].values()} == EXPECTED
