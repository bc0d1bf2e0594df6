"""What the scripts say of what they were given: one line, which no terminal obeys."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.foreign import NASTY

ROOT = Path(__file__).parents[2]
SAID = {
    "container": (["scripts/cache/inspect_caches.sh", "--name", "{}"], {}),
    "argument": (["scripts/start_observable_container.sh", "{}"], {}),
    "run": (["cluster/observability/init-run.sh"], {"CONTAINER_RUN_ID": "{}"}),
    "address": (["cluster/bare/head"], {"RAYPREP_ADDRESS": "{}:6379"}),
}


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("script", SAID)
def test_a_script_repeats_what_it_was_given_in_a_line(tmp_path: Path, script: str, name: str) -> None:
    if script == "address" and shutil.which("hostname") is None:
        pytest.skip("hostname is not installed")
    text = "a\udced" if name == "half" else NASTY[name]
    words, env = SAID[script]
    done = subprocess.run(
        [word.replace("{}", text) for word in words],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), **{name: value.replace("{}", text) for name, value in env.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (2, 3)
    assert done.stdout == b""
    (line,) = done.stderr.removesuffix(b"\n").split(b"\n")
    assert line.decode("ascii").isprintable()


def test_plain_words_stay_plain(tmp_path: Path) -> None:
    command: list[str | Path] = [ROOT / "scripts" / "start_observable_container.sh", "a 'b' \"c\" (d)"]
    done = subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.stderr == "start_observable_container.sh: unknown argument 'a 'b' \"c\" (d)' (see --help)\n"
