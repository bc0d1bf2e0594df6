"""What a run shows: lines where nobody looks, a live table on a terminal."""

import io
import json
import re
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.model.events import Phase, event
from rayprep.report.host_view import LineView, choose_view
from rayprep.report.session_log import SessionLog
from tests.conftest import ENSURE_TINY, Built, Roots
from tests.needs import needs_tool, needs_torch
from tests.processes import wait_for


def test_lines_for_people_and_for_tools() -> None:
    start = event("inductor", Phase.START, settings={"model": "m", "tp": 8, "batch_sizes": (1, 8)})
    people, tools = io.StringIO(), io.StringIO()
    LineView(people, json_lines=False).show(start)
    LineView(tools, json_lines=True).show(start)
    assert people.getvalue() == "[OPTIMIZE inductor] starting {model=m, tp=8, batch_sizes=[1,8]}\n"
    assert json.loads(tools.getvalue().removeprefix("OPTIMIZE_JSON "))["settings"]["batch_sizes"] == [1, 8]


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(choose_view(json_lines=False, stream=io.StringIO()), LineView)


def test_the_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.log"
    for _ in range(2):
        log = SessionLog(path)
        log.record(event("inductor", Phase.PROGRESS, hint="compiling"))
        log.close()
    assert [line[:14] for line in path.read_text(encoding="utf-8").splitlines()] == ["OPTIMIZE_JSON "] * 2


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    """A tmux server of the test's own, 100 columns wide."""
    command = ["tmux", "-L", f"rayprep-{uuid.uuid4().hex}", "-f", "/dev/null"]
    subprocess.run([*command, "new-session", "-d", "-x", "110", "-y", "40"], cwd=tmp_path, check=True)
    yield command
    subprocess.run([*command, "kill-server"], check=False)


class Terminal:
    def __init__(self, tmux: list[str]) -> None:
        self.tmux = tmux

    def type(self, roots: Roots, *args: str) -> None:
        ours = [f"{name}={roots.env[name]}" for name in ("HOME", "TORCHINDUCTOR_VEC_ISA_OK")]
        line = shlex.join(["env", *ours, *roots.command("ensure", *args)])
        subprocess.run([*self.tmux, "send-keys", line, "Enter"], check=True)

    def shows(self, pattern: str) -> bool:
        # -J joins the lines that the terminal wrapped.
        screen = subprocess.run([*self.tmux, "capture-pane", "-p", "-J"], capture_output=True, text=True, check=True)
        return re.search(pattern, screen.stdout, re.MULTILINE) is not None


@needs_tool("tmux")
@needs_torch()
@pytest.mark.terminal
@pytest.mark.ray
def test_a_terminal_shows_stages_as_they_go(tmux: list[str], roots: Roots) -> None:
    terminal = Terminal(tmux)
    terminal.type(roots, *ENSURE_TINY, "--timeout", "3")
    wait_for(lambda: terminal.shows(r"^inductor +running +\d+\.\d s +0/1 +compiling"), "the running stage")
    assert terminal.shows(r"^deep_gemm +skipped +no_gpu")
    wait_for(lambda: terminal.shows(r"^inductor +error .*longer than its time-out"), "the end of the stage")
    wait_for(lambda: terminal.shows(r"^RESULT_STATUS error deep_gemm:skipped"), "the result line")


@needs_tool("tmux")
@pytest.mark.terminal
def test_a_terminal_shows_a_run_with_nothing_to_do(tmux: list[str], built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    terminal = Terminal(tmux)
    terminal.type(roots, *ENSURE_TINY)
    wait_for(lambda: terminal.shows(r"^inductor +noop +valid_signature"), "the noop")
    wait_for(lambda: terminal.shows(r"^serve +skipped +no_gpu"), "the stage that is skipped")
    wait_for(lambda: terminal.shows(r"^verify +skipped +no_gpu"), "the proof that is skipped")
    wait_for(lambda: terminal.shows(r"^RESULT_STATUS ok .* inductor:noop"), "the result line")
