"""The head of a cluster dies or freezes under `ensure --cluster`: the fleet's result is closed and says who is lost."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.faults import Run, held_builder, hold, left, ours, release
from tests.fleet.fleet import Fleet, Node, fleet_of
from tests.processes import family, named, wait_for

pytestmark = pytest.mark.ray

GCS, ATTACHED = "gcs_server", "rayprep.fleet.attached"
LOST_S = 45.0
"""From the head's death to the end of the run, on a busy machine; it is noticed after 15 s."""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fleet]:
    nodes = (Node(f"gpu-{index}", tmp_path / f"n{index}") for index in range(2))
    with fleet_of(tmp_path, *nodes) as fleet:
        yield fleet
        fleet.end_drivers()
        release(fleet)


def working(fleet: Fleet, run_id: str) -> Run:
    """A run with a host at work, which goes no further."""
    hold(fleet)
    run = Run(fleet, run_id)
    held_builder(fleet, run)
    return run


@pytest.mark.slow  # by default a local Ray's dies, in test_ray_dies
def test_the_heads_gcs_dies(two: Fleet) -> None:
    run = working(two, "dies")
    began = time.monotonic()
    ours(GCS)[0].kill()
    assert run.wait() == 3, run.text
    assert time.monotonic() - began < LOST_S
    result = two.result("dies")
    assert result["run"]["finished_at"]
    assert result["status"] == "error"
    assert [error["error_type"] for error in result["errors"]] == ["node_lost"]
    states = {host["state"]: host["error"]["error_type"] for host in result["hosts"].values()}
    assert states == {"lost": "node_lost"}
    assert run.said("RESULT_STATUS error hosts:lost=2")
    assert run.said("RESULT_JSON", "fleet_result.json")
    wait_for(lambda: not left(two) and not ours("ray::HostAgent"), "the hosts' processes to end", 20)


@pytest.mark.parametrize("signum", [signal.SIGABRT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_process_that_is_attached_dies(two: Fleet, signum: signal.Signals) -> None:
    run = working(two, "ends")
    named(family(run.process.pid), ATTACHED)[0].send_signal(signum)
    assert run.wait() == 3, run.text
    result = two.result("ends")
    assert result["run"]["finished_at"]
    assert [error["error_type"] for error in result["errors"]] == ["node_lost"]
    assert {host["state"] for host in result["hosts"].values()} == {"lost"}
    assert run.said("RESULT_STATUS error hosts:lost=2")
    wait_for(lambda: not left(two) and not ours("ray::HostAgent"), "the hosts' processes to end")


@pytest.mark.slow  # by default the attached process dies
def test_one_sigterm_ends_a_run_whose_head_is_frozen(two: Fleet) -> None:
    run = working(two, "frozen")
    gcs = ours(GCS)[0]
    gcs.send_signal(signal.SIGSTOP)
    try:
        run.process.terminate()
        assert run.wait(90) == 130, run.text
    finally:
        gcs.send_signal(signal.SIGCONT)
    assert two.result("frozen")["status"] == "partial"
    assert run.said("RESULT_STATUS partial")
    wait_for(lambda: not left(two) and not ours("ray::HostAgent"), "the hosts' processes to end")
