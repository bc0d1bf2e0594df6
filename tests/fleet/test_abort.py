"""kill -9 and signals between a stage's start and its end: nothing is left, nothing half built reads as valid."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import ENSURE_TINY, Built, Roots
from tests.needs import needs_torch
from tests.processes import alive, family, marked, named, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]

SLUG, STAGE, CACHE = "tiny-dense", "inductor", "torchinductor"


@dataclass
class Aborted:
    """A run that was hit in the middle of its stage."""

    roots: Roots
    driver: subprocess.Popen[str]
    processes: list[psutil.Process]
    output: list[str]
    run_id: str = "aborted"

    @property
    def result(self) -> Path:
        return self.roots.telemetry / "container_runs" / self.run_id / "prep_result.json"

    def finish(self) -> int:
        """Waits for the driver, and for every process that the run had to be gone."""
        out, err = self.driver.communicate(timeout=60)
        self.output += [*out.splitlines(), *err.splitlines()]
        wait_for(lambda: not alive(self.processes), f"all of {self.processes} to end")
        wait_for(lambda: not marked(self.result), "the stage's processes to end")
        return self.driver.returncode


Record = Callable[[str, object], None]


def run_until_the_middle(roots: Roots, built: Built, record_property: Record) -> Aborted:
    """Starts `ensure` and returns at a random moment between the stage's `start` and its `end`."""
    roots.extra_env["RAYPREP_COLD"] = "1"
    driver = roots.start("ensure", *ENSURE_TINY, "--json", "--run-id", "aborted")
    assert driver.stdout is not None
    output: list[str] = []
    for line in driver.stdout:
        output.append(line)
        if '"phase":"start"' in line and f'"name":"{STAGE}"' in line:
            break
    else:
        pytest.fail(f"the stage never started: {output} {driver.stderr and driver.stderr.read()}")
    seed = random.SystemRandom().randrange(2**32)
    delay = random.Random(seed).uniform(0.0, 0.3 * built.build_s)
    record_property("hit", f"seed {seed}, {delay:.2f} s after the start")
    result = roots.telemetry / "container_runs" / "aborted" / "prep_result.json"
    wait_for(lambda: named(marked(result), "inductor.child"), "the compiling child")
    moment = time.monotonic() + delay
    # A machine that has become faster since the fixture's build must not reach the end before the hit.
    wait_for(
        lambda: time.monotonic() >= moment or any(event.get("done") for event in roots.events("aborted")),
        "the moment",
        delay + 60,
    )
    del roots.extra_env["RAYPREP_COLD"]
    return Aborted(roots, driver, [*family(driver.pid), *marked(result)], output)


def assert_it_was_the_middle(roots: Roots) -> None:
    phases = [event["phase"] for event in roots.events("aborted") if event["name"] == STAGE]
    assert "start" in phases
    assert "end" not in phases


def kill_the_child(run: Aborted) -> None:
    wait_for(lambda: named(marked(run.result), "rayprep.stages.inductor.child"), "a child to hit")
    named(marked(run.result), "rayprep.stages.inductor.child")[-1].kill()


def kill_the_agent(run: Aborted) -> None:
    named(run.processes, "ray::Agent")[0].kill()


def kill_the_driver(run: Aborted) -> None:
    run.driver.kill()


@pytest.mark.parametrize(
    ("hit", "status", "error_type"),
    [
        pytest.param(kill_the_child, 13, "compile_failed", id="child", marks=pytest.mark.slow),
        # By default an agent and a driver are killed where that costs less, in test_fleet_faults.
        pytest.param(kill_the_agent, 13, "node_lost", id="agent", marks=pytest.mark.slow),
        pytest.param(kill_the_driver, -signal.SIGKILL, None, id="driver", marks=pytest.mark.slow),
    ],
)
def test_kill_9_is_repaired_by_the_next_ensure(
    roots: Roots,
    built: Built,
    record_property: Record,
    hit: Callable[[Aborted], None],
    status: int,
    error_type: str | None,
) -> None:
    run = run_until_the_middle(roots, built, record_property)
    assert_it_was_the_middle(roots)
    hit(run)
    assert run.finish() == status, run.output

    marker = json.loads(roots.marker(SLUG, STAGE).read_text(encoding="utf-8"))
    assert marker["run_id"] == "aborted"
    result = roots.result("aborted")
    assert result["status"] in ("error", "partial")
    if error_type:
        assert result["stages"][STAGE]["error_type"] == error_type
        assert result["errors"][0]["stage"] == STAGE
        assert result["run"]["finished_at"]
    else:
        assert result["run"]["finished_at"] is None
    snapshot = roots.inspect()
    assert snapshot["partial"] is True
    cache = snapshot[CACHE]
    assert (cache["valid"], cache["partial"], cache["reason"]) == (False, True, "in_progress_or_aborted")
    assert cache["partial_info"]["owner_pid"] == marker["owner_pid"]

    repaired = roots.run("ensure", *ENSURE_TINY, "--run-id", "repair")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert roots.result("repair")["stages"][STAGE]["status"] == "ok"
    assert not roots.marker(SLUG, STAGE).exists()
    cache = roots.inspect("--deep")[CACHE]
    assert (cache["valid"], cache["partial"]) == (True, False)


@pytest.mark.parametrize(
    "signum",
    [pytest.param(signal.SIGINT, id="SIGINT"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_an_interrupt_leaves_a_partial_result_and_nothing_else(
    roots: Roots, built: Built, record_property: Record, signum: signal.Signals
) -> None:
    run = run_until_the_middle(roots, built, record_property)
    # As Ctrl-C does, to the whole foreground group; SIGTERM as a supervisor does, to the driver alone.
    (os.killpg if signum is signal.SIGINT else os.kill)(run.driver.pid, signum)
    assert run.finish() == 130, run.output
    result = roots.result("aborted")
    assert result["status"] == "partial"
    assert result["stages"][STAGE]["error_type"] == "interrupted"
    assert result["stages"][STAGE]["ran"] is True
    assert next(error["error_type"] for error in result["errors"]) == "interrupted"
    assert roots.marker(SLUG, STAGE).exists()
    assert any(line.startswith("RESULT_STATUS partial") for line in run.output)


def test_an_interrupt_while_ray_starts_leaves_a_partial_result_and_ends_the_campaign(roots: Roots) -> None:
    file = roots.base / "campaign.json"
    file.write_text(json.dumps({"campaign": [{"batch_sizes": [1]}, {"batch_sizes": [2]}]}), encoding="utf-8")
    driver = roots.start("ensure", "--spec-file", str(file), *ENSURE_TINY[:2], "--json", "--run-id", "early")
    wait_for(lambda: named(family(driver.pid), "gcs_server"), "Ray's first process")
    processes = family(driver.pid)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, out + err
    wait_for(lambda: not alive(processes), "Ray's processes to end")
    assert roots.result("early-1")["status"] == "partial"
    assert out.splitlines()[-1] == "RESULT_CAMPAIGN partial early-1:partial early-2:not_started"
    assert "Traceback" not in err
