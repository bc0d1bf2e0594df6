"""Ray's own processes die or freeze under a run: it ends in its own words, with its own status, and leaves nothing."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from rayprep.host.process import marked_processes
from tests.conftest import ENSURE_TINY, Built, Roots
from tests.fleet.test_abort import SLUG, STAGE, Aborted, Record, run_until_the_middle
from tests.needs import needs_torch
from tests.processes import alive, family, named, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]

GCS, RAYLET, ATTACHED = "gcs_server", "raylet/raylet", "rayprep.fleet.attached"
TOKEN = "RAY_AUTH_TOKEN_PATH"
LOST_S = 40.0
"""Ray itself gives up after 60 s. From a death to the end, the compilers' grace included, on a busy machine."""
SOCKET_BYTES = 107
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def folder_of(run: Aborted) -> Path:
    """The folder of the run's own Ray."""
    return Path(named(run.processes, GCS)[0].environ()[TOKEN]).parent


def end(run: Aborted, folder: Path) -> int:
    """Waits for the run's end; nothing of it is left, Ray's processes and folder included."""
    code = run.finish()
    wait_for(lambda: not folder.exists(), f"{folder} to be removed")
    assert not marked_processes(TOKEN, str(folder / "token"))
    return code


def hit(run: Aborted, victim: str, signum: signal.Signals) -> Path:
    """Returns Ray's folder."""
    folder = folder_of(run)
    named(run.processes, victim)[0].send_signal(signum)
    return folder


@pytest.mark.parametrize(
    ("victim", "signum"),
    [
        pytest.param(GCS, signal.SIGKILL, id="gcs"),
        pytest.param(ATTACHED, signal.SIGABRT, id="attached-aborts", marks=pytest.mark.slow),
        pytest.param(ATTACHED, signal.SIGKILL, id="attached", marks=pytest.mark.slow),
        pytest.param(RAYLET, signal.SIGKILL, id="raylet", marks=pytest.mark.slow),
    ],
)
def test_a_ray_that_dies_is_a_lost_node(
    roots: Roots, built: Built, record_property: Record, victim: str, signum: signal.Signals
) -> None:
    run = run_until_the_middle(roots, built, record_property)
    began = time.monotonic()
    folder = hit(run, victim, signum)
    assert end(run, folder) == 13, run.output
    assert time.monotonic() - began < LOST_S
    result = roots.result("aborted")
    assert (result["status"], result["run"]["finished_at"] is None) == ("error", False)
    assert [(error["stage"], error["error_type"]) for error in result["errors"]] == [(STAGE, "node_lost")]
    assert f"RESULT_JSON {run.result}" in run.output
    assert any(line.startswith("RESULT_STATUS error ") for line in run.output)
    assert roots.marker(SLUG, STAGE).exists()


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param(GCS, id="gcs", marks=pytest.mark.slow),
        pytest.param(ATTACHED, id="attached", marks=pytest.mark.slow),
        pytest.param(RAYLET, id="raylet", marks=pytest.mark.slow),
    ],
)
def test_one_sigterm_ends_a_run_whose_ray_is_frozen(
    roots: Roots, built: Built, record_property: Record, victim: str
) -> None:
    run = run_until_the_middle(roots, built, record_property)
    folder = hit(run, victim, signal.SIGSTOP)
    run.driver.terminate()
    assert end(run, folder) == 130, run.output
    result = roots.result("aborted")
    assert (result["status"], result["errors"][0]["error_type"]) == ("partial", "interrupted")
    assert any(line.startswith("RESULT_STATUS partial ") for line in run.output)


@pytest.mark.slow  # by default it dies in the middle of a run
def test_a_gcs_that_dies_while_ray_starts(roots: Roots) -> None:
    driver = roots.start("ensure", *ENSURE_TINY, "--json", "--run-id", "early")
    wait_for(lambda: named(family(driver.pid), GCS), "Ray's first process")
    processes = family(driver.pid)
    named(processes, GCS)[0].kill()
    out, err = driver.communicate(timeout=120)
    wait_for(lambda: not alive(processes), "Ray's processes to end")
    result = roots.result("early")
    (error,) = result["errors"]
    assert (driver.returncode, error["error_type"] in ("ray_unavailable", "node_lost")) == (3, True), out + err
    assert out.splitlines()[-1].startswith("RESULT_STATUS error ")
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_next_request_of_a_campaign_has_a_ray_of_its_own(roots: Roots) -> None:
    file = roots.base / "campaign.json"
    file.write_text(json.dumps({"campaign": [{"batch_sizes": [1]}, {"batch_sizes": [2]}]}), encoding="utf-8")
    driver = roots.start("ensure", "--spec-file", str(file), *ENSURE_TINY[:2], "--json", "--run-id", "two")
    wait_for(lambda: roots.marker(SLUG, STAGE).exists(), "the first request's stage")
    named(family(driver.pid), GCS)[0].kill()
    out, err = driver.communicate(timeout=240)
    assert out.splitlines()[-1] == "RESULT_CAMPAIGN partial two-1:error two-2:ok", out + err
    assert driver.returncode == 13
    assert roots.result("two-1")["errors"][0]["error_type"] == "node_lost"


def test_nobody_else_reaches_a_local_ray(roots: Roots, built: Built, record_property: Record) -> None:
    run = run_until_the_middle(roots, built, record_property)
    folder = folder_of(run)
    listening = listeners(run.processes)
    entered_by = folder.stat()
    # A worker imports what lies in the folder that it was started in.
    homes = {
        process.name(): process.cwd() for process in run.processes if process.name().startswith(("gcs_", "raylet"))
    }
    sockets = list(folder.glob("ray/session_2*/sockets/*"))
    run.driver.terminate()
    assert end(run, folder) == 130
    assert {name for name, home in homes.items() if not Path(home).is_relative_to(folder)} == set()
    assert (entered_by.st_uid, entered_by.st_mode & 0o777) == (os.getuid(), 0o700)
    assert max(len(os.fsencode(path)) for path in sockets) + len("999999") <= SOCKET_BYTES, "with a longer process id"
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [(name, address) for name, address in listening if address not in LOOPBACK] == []


def listeners(processes: list[psutil.Process]) -> list[tuple[str, str]]:
    """The names of those that listen on TCP, and at which addresses."""
    found = []
    for process in alive(processes):
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        found += [(process.name(), each.laddr.ip) for each in connections if each.status == psutil.CONN_LISTEN]
    return found
