"""`rayprep verify` on the command line; what it proves is tested at the node's level."""

import json
import subprocess

from tests.conftest import Roots

ARGS = ("--device", "cpu", "--run-id", "proof")
COMMAND = ("python", "-m", "sglang.launch_server", "--model-path", "tiny-dense", "--tp", "2", "--api-key", "sk-1")


def test_the_command_after_the_dashes_is_the_campaigns_own(roots: Roots) -> None:
    line = [*roots.command("verify", *ARGS), "--telemetry-root", str(roots.telemetry), "--", *COMMAND]
    done = subprocess.run(line, env=roots.env, capture_output=True, text=True, timeout=60, check=True)
    result = roots.result("proof")
    settings = result["run"]["settings"]
    assert settings["server_command"] == [*COMMAND[:-1], "***"]
    assert (settings["model"], settings["tp"]) == ("tiny-dense", 2)
    assert {(stage["ran"], stage["reason"]) for stage in result["stages"].values()} == {(False, "not_selected")}
    assert (result["verify"]["ran"], result["verify"]["reason"]) == (False, "no_gpu")
    assert "[OPTIMIZE verify] skipped (no_gpu)" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].endswith(" serve:skipped verify:skipped")
    assert "sk-1" not in json.dumps(result) + done.stdout + done.stderr + roots.log("proof").read_text(encoding="utf-8")


def test_a_port_that_is_none_is_refused_at_once(roots: Roots) -> None:
    line = [*roots.command("verify", *ARGS), "--telemetry-root", str(roots.telemetry), "--", *COMMAND, "--port", "x"]
    done = subprocess.run(line, env=roots.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--port x is no port" in done.stderr
