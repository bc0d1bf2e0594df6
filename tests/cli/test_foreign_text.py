"""Names that others chose, through every command: what is written prints, and the lines are rayprep's own."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rayprep.cli.on_cluster import _table
from rayprep.fleet.command_answers import Answer, Everywhere
from tests.conftest import TIMEOUT_S, Roots, write_model
from tests.foreign import ALL, NASTY, UTF8, lines

FILE = {name: text for name, text in NASTY.items() if name != "half"}
"""Those that a file can be called."""
HIDDEN = ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG")


def run(roots: Roots, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """As bytes, where `Roots.run` would decode them."""
    command = [sys.executable, "-m", "rayprep", *args]
    kept = {name: value for name, value in roots.env.items() if name not in HIDDEN}
    return subprocess.run(
        command, env={**kept, **env}, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
    )


def places(roots: Roots, *, telemetry: bool = True) -> list[str]:
    below = ["--telemetry-root", str(roots.telemetry)] if telemetry else []
    return ["--profiles-root", str(roots.profiles), *below]


@pytest.fixture
def littered(roots: Roots) -> Roots:
    """A cache with entries of every name, and a marker's folder."""
    for name in FILE.values():
        entry = roots.profiles / "torchinductor" / name
        entry.mkdir(parents=True)
        (entry / name).touch()
        (roots.profiles / ".in_progress" / name).mkdir(parents=True)
    return roots


@pytest.mark.parametrize("name", ["title", "newline", "override"])
def test_inspect_shows_a_file_in_a_line(roots: Roots, name: str) -> None:
    plain = len(lines(run(roots, "inspect", *places(roots, telemetry=False)).stdout))
    folder = roots.profiles / "torchinductor" / "zz"
    folder.mkdir(parents=True)
    (folder / FILE[name]).touch()
    done = run(roots, "inspect", *places(roots, telemetry=False))
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(lines(done.stdout)) == plain + 1


def test_inspect_says_the_same_in_json(littered: Roots) -> None:
    done = run(littered, "inspect", "--json", *places(littered, telemetry=False))
    lines(done.stdout)
    names = {Path(each["path"]).name for each in json.loads(done.stdout)["torchinductor"]["newest_files"]}
    assert len(names) == 5
    assert names <= set(FILE.values())


def test_a_link_is_shown_with_where_it_leads(roots: Roots) -> None:
    roots.profiles.mkdir()
    (roots.profiles / "triton").symlink_to(ALL)
    done = run(roots, "inspect", *places(roots, telemetry=False))
    assert any("which is not followed" in line for line in lines(done.stdout))


def test_a_model_may_lie_anywhere(roots: Roots) -> None:
    model = write_model(roots.base / ALL)
    done = run(roots, "explain", "--model", str(model), "--device", "cpu", *places(roots))
    assert (done.returncode, done.stderr) == (0, b"")
    first, *others = lines(done.stdout)
    assert " at TP 1, from " in first
    said = run(roots, "explain", "--model", str(model), "--device", "cpu", "--json", *places(roots))
    lines(said.stdout)
    assert json.loads(said.stdout)["decisions"]
    assert len(others) >= len(json.loads(said.stdout)["decisions"])


@pytest.fixture
def spec(roots: Roots) -> Path:
    """With a key that nobody knows, which every run warns of."""
    path = roots.base / "spec.json"
    path.write_text(json.dumps({"model": "tiny-dense", ALL: 1}), encoding="utf-8")
    return path


def ensure(roots: Roots, spec: Path, *args: str) -> list[str]:
    what = ("--device", "cpu", "--skip", "inductor", "--run-id", "r")
    return ["ensure", "--spec-file", str(spec), *what, *places(roots), *args]


def test_a_run_warns_in_a_line(roots: Roots, spec: Path) -> None:
    done = run(roots, *ensure(roots, spec))
    warning, *stages, result_json, status = lines(done.stdout)
    assert warning.startswith("[OPTIMIZE ensure] warning: ")
    assert [stage.split()[0] for stage in stages] == ["[OPTIMIZE"] * 7
    assert result_json == f"RESULT_JSON {roots.telemetry}/container_runs/r/prep_result.json"
    assert status.startswith("RESULT_STATUS ok ")


def test_a_run_for_tools_says_the_whole_name(roots: Roots, spec: Path) -> None:
    done = run(roots, *ensure(roots, spec, "--json"))
    first = lines(done.stdout)[0]
    assert ALL in json.loads(first.removeprefix("OPTIMIZE_JSON "))["message"]
    log = lines((roots.telemetry / "logs" / "r.log").read_bytes())
    assert {line.split()[0] for line in log} == {"[OPTIMIZE", "OPTIMIZE_JSON"}
    assert log.count(first) == 1


@pytest.mark.terminal
def test_a_run_on_a_terminal_draws_nothing_of_theirs(roots: Roots, spec: Path) -> None:
    status, sent = on_terminal(roots, *ensure(roots, spec))
    assert status == 0
    assert any("\\u202e" in line for line in lines(sent, drawn=True))


@pytest.mark.terminal
def test_a_table_on_a_terminal_draws_nothing_of_theirs(littered: Roots) -> None:
    status, sent = on_terminal(littered, "inspect", *places(littered, telemetry=False))
    assert status == 0
    assert any("\\x" in line or "\\u" in line for line in lines(sent, drawn=True))


def on_terminal(roots: Roots, *args: str) -> tuple[int, bytes]:
    """The command's status, and what its terminal got."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rayprep", *args]
    env = {**roots.env, "TERM": "xterm-256color", "COLUMNS": "400", "LINES": "50"}
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        sent = b""
        while chunk := _read(ours):
            sent += chunk
        status = process.wait(TIMEOUT_S)
    os.close(ours)
    return status, sent


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed: how a pseudo-terminal says end of file
        return b""


def test_doctor_says_a_finding_a_line(littered: Roots) -> None:
    strange = {"CXX": f"/none/{ALL}", "NVIDIA_VISIBLE_DEVICES": ALL, "CUDA_HOME": f"/{ALL}"}
    done = run(littered, "doctor", "--device", "cpu", *places(littered), **strange)
    *found, _ = lines(done.stdout)
    assert {line.split()[0] for line in found} <= {"ok", "warn", "fail"}
    assert lines(done.stderr) == [""]
    said = run(littered, "doctor", "--device", "cpu", "--json", *places(littered), **strange)
    lines(said.stdout)
    assert len(json.loads(said.stdout)["findings"]) == len(found)


def test_reset_removes_such_entries_and_logs_a_line_for_each(littered: Roots) -> None:
    shown = run(littered, "reset", "--dry-run", *places(littered))
    lines(shown.stdout)
    lines(run(littered, "reset", "--dry-run", "--json", *places(littered)).stdout)
    done = run(littered, "reset", "--yes", "--run-id", "r", *places(littered))
    assert done.returncode == 0, done.stderr
    lines(done.stdout)
    log = lines((littered.telemetry / "logs" / "r.log").read_bytes())
    assert {line.split()[0] for line in log} == {"[RESET"}
    assert len([line for line in log if "] removed /" in line]) >= len(FILE)
    assert list((littered.profiles / "torchinductor").iterdir()) == []


BAD = {
    "option": ("ensure", "--bogus{}"),
    "number": ("ensure", "--tp", "{}"),
    "command": ("{}",),
    "more": ("env", "{}"),
    "model": ("ensure", "--model", "{}"),
    "device": ("inspect", "--device", "{}"),
    "stage": ("ensure", "--model", "tiny-dense", "--skip", "{}"),
    "spec": ("ensure", "--spec-file", "{}"),
    "run id": ("ensure", "--model", "tiny-dense", "--run-id", "{}"),
    "schema": ("schema", "{}"),
    "package": ("unpack", "{}"),
    "key": ("pack", "{}", "-o", "out"),
    "archive": ("pack", "x", "-o", "/none/{}"),
    "report": ("report", "{}"),
    "manifest": ("snapshot", "--manifest", "{}"),
    "labels": ("ensure", "--cluster", "--address", "x:1", "--labels", "{}"),
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
def test_what_was_typed_is_repeated_as_text(roots: Roots, args: tuple[str, ...]) -> None:
    done = run(roots, *(word.replace("{}", ALL) for word in args))
    assert done.returncode in (2, 3)
    assert done.stdout == b""
    first, *others = lines(done.stderr)
    assert len(others) == (3 if first.startswith("Usage: ") else 0)


def test_a_trace_prints(roots: Roots) -> None:
    done = run(roots, "ensure", "--debug", "--model", ALL, *places(roots))
    assert done.returncode == 1
    assert lines(done.stderr)[0].startswith("Traceback")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_shell_reads_the_variables_in_any_encoding(roots: Roots, encoding: str) -> None:
    root = roots.base / "it's a «кэш» $(touch x) 🙂"
    done = run(roots, "env", "--profiles-root", str(root), PYTHONIOENCODING=encoding)
    script = done.stdout + b'\nprintf %s "$TRITON_CACHE_DIR"'
    read = subprocess.run(["bash", "-c", os.fsdecode(script)], capture_output=True, check=True, cwd=roots.base)
    assert os.fsdecode(read.stdout) == f"{root}/triton"
    assert not (roots.base / "x").exists()
    assert shlex.split(os.fsdecode(done.stdout))[0] == "export"


def test_a_stream_that_cannot_encode_stops_nothing(roots: Roots) -> None:
    odd = Roots(roots.base / "кэш")
    odd.base.mkdir()
    model = write_model(odd.base / "модель-1b")
    what = ["--model", str(model), "--device", "cpu"]
    done = run(odd, "ensure", *what, "--skip", "inductor", "--run-id", "r", *places(odd), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    result = os.fsdecode(done.stdout).splitlines()[-2].removeprefix("RESULT_JSON ")
    assert json.loads(Path(result).read_text(encoding="utf-8"))["status"] == "ok"
    said = run(odd, "explain", *what, "--json", *places(odd), PYTHONIOENCODING="ascii")
    assert said.stdout.isascii()
    assert json.loads(said.stdout)
    for command in (["explain", *what], ["inspect"], ["doctor", "--device", "cpu"]):
        telemetry = command[0] != "inspect"
        shown = run(odd, *command, *places(odd, telemetry=telemetry), PYTHONIOENCODING="ascii")
        assert shown.stderr == b""
        assert shown.stdout.isascii()


def test_a_host_is_a_line() -> None:
    hosts = {name: Answer(exit_code=3, error=name) for name in UTF8.values()}
    table = _table(Everywhere(command=("inspect",), hosts=hosts))
    assert len(table) == len(hosts)
    columns = {line.index("exit 3") for line in table}
    assert len(columns) == 1
