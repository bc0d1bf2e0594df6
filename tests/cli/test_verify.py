"""`rayprep verify` on the command line; what it proves is tested at the node's level."""

import subprocess
import sys

from tests.conftest import Roots

ARGS = ("--device", "cpu", "--run-id", "proof")
COMMAND = (sys.executable, "-m", "sglang.launch_server", "--model-path", "tiny-dense", "--tp", "2", "--api-key", "sk-1")


def test_without_a_gpu_nothing_is_proved_and_that_is_no_success(roots: Roots) -> None:
    line = [*roots.command("verify", *ARGS), "--telemetry-root", str(roots.telemetry), "--", *COMMAND]
    done = subprocess.run(line, env=roots.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "a proof needs a GPU" in done.stderr
    assert "sk-1" not in done.stdout + done.stderr


def test_a_port_that_is_none_is_refused_at_once(roots: Roots) -> None:
    line = [*roots.command("verify", *ARGS), "--telemetry-root", str(roots.telemetry), "--", *COMMAND, "--port", "x"]
    done = subprocess.run(line, env=roots.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--port x is no port" in done.stderr


def test_a_program_that_is_not_there_is_named_before_anything_is_done(roots: Roots) -> None:
    given = (*ARGS, "--model", "tiny-dense", "--telemetry-root", str(roots.telemetry))
    line = [*roots.command("verify", *given), "--", "./start.sh", "--port", "1"]
    done = subprocess.run(line, env=roots.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "'./start.sh' is not there" in done.stderr
    assert list(roots.telemetry.glob("*")) == []
