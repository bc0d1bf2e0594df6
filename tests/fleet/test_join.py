"""`--address`: the work goes to an agent on a Ray cluster that is there, which stays when the run ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayprep.host.process import end_processes, marked_processes
from tests.conftest import ENSURE_TINY, QUICK_COMPILER, Built, Roots, write_model
from tests.host.test_ports import free_port
from tests.needs import needs_torch
from tests.processes import family, import_s, named, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    # As `built` was made; the agent inherits the cluster's.
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    monkeypatch.setenv("CXX", str(QUICK_COMPILER))

    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False},
    )
    yield started.address
    started.shutdown()


@pytest.mark.slow
def test_an_agent_on_a_running_cluster_does_a_campaign(cluster: str, built: Built, roots: Roots) -> None:
    """Three requests, of which the one in the middle cannot be; one agent does the others."""
    built.copy_to(roots)
    # The files stay and only the completion is gone, so that the work is short: a look that finds all graphs.
    completion = next((roots.profiles / ".rayprep" / "inductor").glob("*.json"))
    completion.unlink()
    same = write_model(roots.base / "same")
    campaign = [{"model": "tiny-dense"}, {"model": "nowhere"}, {"model": str(same)}]
    file = roots.base / "campaign.json"
    file.write_text(json.dumps({"campaign": campaign}), encoding="utf-8")
    asked = ("--spec-file", str(file), *ENSURE_TINY[2:], "--address", cluster, "--json", "--run-id", "joined")
    run = roots.start("ensure", *asked)
    assert run.stdout is not None
    agents, ends = [], []
    for line in run.stdout:
        if '"name":"inductor","phase":"start"' in line:
            agents.append([each.pid for each in named(family(psutil.Process().pid), "ray::Agent")])
        ends += [line] if line.startswith("RESULT_CAMPAIGN") else []
    err = run.communicate(timeout=60)[1]
    assert (run.returncode, ends) == (2, ["RESULT_CAMPAIGN partial joined-1:ok joined-2:error joined-3:ok\n"]), err
    assert "error [BadRequest]: joined-2: model 'nowhere' is no folder" in err
    assert len(agents) == 2
    assert len(agents[0]) == 1
    assert agents[1] == agents[0]
    for run_id in ("joined-1", "joined-3"):
        stage = roots.result(run_id)["stages"]["inductor"]
        assert (stage["status"], stage["artifacts"]["built"]) == ("ok", [])
    assert completion.exists()
    raylets = named(family(psutil.Process().pid), "raylet")
    assert raylets, "the cluster must outlive the run"
    wait_for(lambda: not named(family(psutil.Process().pid), "ray::Agent"), "the agent to end with its driver")


@pytest.mark.slow  # by default a local Ray dies in the middle, in test_ray_dies
def test_the_cluster_is_gone_in_the_middle(cluster: str, roots: Roots) -> None:
    run = roots.start("ensure", *ENSURE_TINY, "--address", cluster, "--json", "--run-id", "cut")
    assert run.stdout is not None
    for line in run.stdout:
        if '"name":"inductor","phase":"progress"' in line:
            break
    for process in named(family(psutil.Process().pid), "raylet"):
        process.kill()
    out, err = run.communicate(timeout=120)
    assert run.returncode == 13, out + err
    stage = roots.result("cut")["stages"]["inductor"]
    assert (stage["status"], stage["error_type"]) == ("error", "node_lost")
    assert roots.marker("tiny-dense", "inductor").exists()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A cluster that wants a token: its address, and the token's file."""
    token, port = tmp_path / "token", free_port()
    token.write_text("0123456789abcdef0123456789abcdef", encoding="ascii")
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "SPT_NOENV": "1"}
    start: list[str | Path] = [
        Path(sys.executable).with_name("ray"),
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=0",
    ]
    quiet = ["--include-dashboard=false", "--object-store-memory=80000000"]
    try:
        subprocess.run([*start, *quiet], env=env, capture_output=True, timeout=60, check=True)
        yield f"127.0.0.1:{port}", token
    finally:
        assert not end_processes(marked_processes("RAY_AUTH_TOKEN_PATH", str(token)))


@pytest.mark.slow  # by default a wrong address is
def test_a_missing_token_is_one_line_within_ten_seconds(guarded: tuple[str, Path], roots: Roots) -> None:
    address, token = guarded
    without = {**roots.env, "RAY_AUTH_MODE": "disabled"}
    nowhere = {**roots.env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{token}.none"}
    command = [*roots.command("ensure", *ENSURE_TINY), "--cluster", "--address", address]
    limit_s = 10 + 2 * import_s()
    for env, words in ((without, "wants another token"), (nowhere, "token.none cannot be read")):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
        assert words in done.stderr
