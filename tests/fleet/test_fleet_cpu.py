"""`ensure --cluster --device cpu`: three hosts without a GPU, and graphs that torch really compiles."""

from pathlib import Path

import pytest

from tests.conftest import ENSURE_TINY
from tests.fleet.fleet import Node, fleet_of
from tests.needs import needs_torch

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]


@pytest.mark.slow  # by default one host compiles, in cli/test_ensure, and what is shipped is a stand-in's
def test_one_host_compiles_for_three(tmp_path: Path) -> None:
    hosts = [Node(f"cpu-{index}", tmp_path / f"n{index}", gpus=0, libraries=()) for index in range(3)]
    with fleet_of(tmp_path, *hosts) as fleet:
        done = fleet.ensure(*ENSURE_TINY, "--nodes", "cpu-0,cpu-1,cpu-2", run_id="cpu")
        proof = fleet.run(
            "verify", "--cluster", "--model", "tiny-dense", "--device", "cpu", "--nodes", "cpu-0", "--run-id", "proof"
        )
        doctor = fleet.run("doctor", "--cluster", "--exclude", "cpu-0,cpu-1")
    assert "cpu-2 " in doctor.stdout, doctor.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hosts:ready=3 " in done.stdout
    assert (proof.returncode, "a proof needs a GPU" in proof.stderr + proof.stdout) == (3, True), proof.stdout
    assert "[OPTIMIZE ensure] cpu-0: error: a proof needs a GPU" in proof.stdout
    assert "(run it on a host with a GPU)" in proof.stdout
    assert "hosts:failed=1" in proof.stdout
    found = fleet.result("cpu")["hosts"]
    (builder,) = [name for name, host in found.items() if host["built"]]
    assert found[builder]["built"] == ["inductor"]
    received = [host["received"][0] for name, host in found.items() if name != builder]
    assert [(each["source"], each["stages"]) for each in received] == [(builder, ["inductor"])] * 2
    # The head has no GPU either, and would take part; without a GPU nothing is proved on a server.
    assert {host["verify"] for host in found.values()} == {"skipped"}
    made = fleet.nodes[builder].artifacts()
    first, second = (node.artifacts() for node in hosts if node.name != builder)
    assert first
    assert first == second
    assert first.items() <= made.items(), "the builder has its compiler's locks beside them"
