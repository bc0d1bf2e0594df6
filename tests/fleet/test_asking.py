"""A fleet's hosts and their SGLang: one of each kind is asked, and all of the kind plan by its answer."""

import json
from pathlib import Path

import pytest

from tests.fleet.fleet import FAKES, Fleet, Node, fleet_of
from tests.needs import needs_torch
from tests.node.test_inventory import MODEL

pytestmark = [pytest.mark.ray, needs_torch()]

EXPECTED = {"noop", "skipped"}
FLAGS = ("--server-arg=--compile", "--skip", "deep_gemm", "--skip", "moe_tune", "--skip", "flashinfer")


def who_asked(fleet: Fleet, run_id: str) -> list[str]:
    return [name for name, node in fleet.nodes.items() if (node.layout.run(run_id) / "inventory.log").exists()]


def test_one_host_of_a_kind_asks_its_sglang(tmp_path: Path) -> None:
    folder = tmp_path / "played"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    libraries = (FAKES / "asked_lib", FAKES / "sglang_lib")
    hosts = [Node(f"gpu-{index}", tmp_path / f"n{index}", libraries=libraries) for index in range(2)]
    with fleet_of(tmp_path, *hosts) as fleet:
        done = fleet.ensure("--model", str(folder), *FLAGS, run_id="first")
        again = fleet.ensure("--model", str(folder), *FLAGS, run_id="again")
        asked = who_asked(fleet, "first"), who_asked(fleet, "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.returncode == 0, again.stdout + again.stderr
    assert (len(asked[0]), asked[1]) == (1, [])
    for node in hosts:
        (completion,) = (node.layout.profiles / ".rayprep" / "serve").glob("*.json")
        inventory = json.loads(completion.read_text(encoding="utf-8"))["inventory"]
        assert inventory["architecture"] == "PlayedForCausalLM", "who receives has the answer too"
        assert {stage["status"] for stage in fleet.host_result("again", node.name)["stages"].values()} == EXPECTED
