"""A fleet of three hosts without GPUs, and the real CPU stage: what one has built the others load."""

from pathlib import Path

import pytest

from tests.conftest import ENSURE_TINY, Built, Roots
from tests.fleet.fleet import Node, fleet_of
from tests.needs import needs_torch

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]


def test_real_graphs_are_received_and_found_good(built: Built, tmp_path: Path) -> None:
    nodes = [Node(f"cpu-{index}", tmp_path / f"n{index}", gpus=0, rehearsed=False) for index in range(3)]
    built.copy_to(Roots(nodes[1].base))
    with fleet_of(tmp_path, *nodes) as fleet:
        done = fleet.ensure(*ENSURE_TINY[2:], "--exclude", "head", run_id="graphs")
        assert done.returncode == 0, done.stdout + done.stderr
        hosts = fleet.result("graphs")["hosts"]
        assert {name: [each["source"] for each in host["received"]] for name, host in hosts.items()} == {
            "cpu-0": ["cpu-1"],
            "cpu-1": [],
            "cpu-2": ["cpu-1"],
        }
        assert {host["stages"]["inductor"] for host in hosts.values()} == {"noop"}
        assert nodes[0].artifacts() == nodes[1].artifacts()
        # All hashes hold, and a process that has never seen them finds every graph.
        again = fleet.ensure(*ENSURE_TINY[2:], "--exclude", "head", "--deep", run_id="deep")
        assert "inductor:noop=3" in again.stdout
        completion = next((nodes[2].layout.profiles / ".rayprep" / "inductor").glob("*.json"))
        completion.unlink()
        mended = fleet.ensure(*ENSURE_TINY[2:], "--nodes", "cpu-2", run_id="found")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert fleet.host_result("found", "cpu-2")["stages"]["inductor"]["artifacts"]["built"] == []
