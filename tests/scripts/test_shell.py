"""The shell scripts: shellcheck, and what the set-up says and does. A stand-in for Python spares the slow pip."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.needs import needs_tool

ROOT = Path(__file__).parents[2]
UNFIT = 3

PYTHON = r"""#!/bin/sh
case "$*" in
*base_prefix*) echo "(3, 12) ${PREFIX:-/usr}" ;;
*version_info*) echo "${VERSION:-3.12}" ;;
*ensurepip* | *Python.h*) [ -z "$BARE" ] ;;
*importlib*) [ -n "$TORCH" ] && echo "$TORCH /opt/with torch" ;;
"-m venv "*) echo venv >>"$CALLS" && mkdir -p "$3/bin" "$3/lib/python3.12/site-packages" && cp "$0" "$3/bin/python" ;;
*" --dry-run "*constraints*) [ -z "$NO_PIN" ] && echo "Would install $WOULD" ;;
*" --dry-run "*) echo "Would install $WOULD" ;;
*" -e "*)
    echo "install $*" >>"$CALLS"
    [ -z "$KILL" ] || { echo "Installing collected packages: ray" && sleep 0.2 && kill -KILL 0; }
    [ -z "$FAIL" ] || { echo "ERROR: the disk is full" && exit 1; }
    ;;
esac
"""
"""Answers what scripts/setup-venv asks of a Python, and notes in $CALLS what is slow with a real one."""


def shell_scripts() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        # Other workers compile modules meanwhile: there are temporary files beside the compiled ones, and then none.
        folders[:] = [name for name in folders if name == ".ci" or not name.startswith((".", "__pycache__"))]
        for path in (Path(folder, name) for name in files):
            with path.open("rb") as file:
                first = file.readline(80).rstrip()
            if first.startswith(b"#!") and first.endswith((b"/sh", b"bash")):
                yield path


@needs_tool("shellcheck")
def test_shellcheck() -> None:
    scripts = sorted(shell_scripts())
    expected = {"scripts/quickstart", ".ci/run", "cluster/bare/head", "cluster/slurm/rayprep.sbatch"}
    expected |= {"scripts/cache/inspect_caches.sh", "cluster/container/entrypoint", "cluster/observability/init-run.sh"}
    assert {ROOT / name for name in expected} <= set(scripts)
    # And what they source, whose paths are from the root.
    sourced = [
        ROOT / name for name in ("cluster/bare/env", "cluster/bare/node", "scripts/engine", "scripts/cache/command")
    ]
    command: list[str | Path] = ["shellcheck", "--external-sources", *scripts, *sourced]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


CONTAINER_SCRIPTS = (
    *("start_observable_container.sh", "stop_observable_container.sh"),
    *("cache/inspect_caches.sh", "cache/populate_caches.sh", "cache/reset_caches.sh"),
)


@pytest.mark.parametrize("name", CONTAINER_SCRIPTS)
def test_help_needs_no_engine(name: str) -> None:
    done = subprocess.run([ROOT / "scripts" / name, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  {Path(name).name} [" in done.stdout
    assert "--name NAME" in done.stdout


@dataclass
class Machine:
    """A copy of the project in a folder with a space, and a PATH with every program but Pythons and compilers."""

    project: Path
    programs: Path

    def add(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text, encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def change(self, name: str) -> None:
        with (self.project / name).open("a", encoding="utf-8") as file:
            file.write("# changed\n")

    def run(self, script: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """From a folder that is not the project's."""
        self._calls.write_text("", encoding="utf-8")
        return subprocess.run(
            [script, *args],
            cwd=self.programs,
            env={"PATH": str(self.programs), "CALLS": str(self._calls), "WOULD": "ray-1", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            start_new_session=True,
        )

    def quickstart(self, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.project / "scripts" / "quickstart", **env)

    def set_up(self, *extras: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.project / "scripts" / "setup-venv", *(extras or ("cpu",)), **env)

    @property
    def _calls(self) -> Path:
        return self.programs.parent / "calls"

    @property
    def slow(self) -> list[str]:
        """What the last run did that is slow: `venv`, and what pip installed."""
        return [line.split()[-1] for line in self._calls.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    project, programs = tmp_path / "a project", tmp_path / "programs"
    shutil.copytree(ROOT / "scripts", project / "scripts")
    shutil.copy(ROOT / "pyproject.toml", project)
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith(("python", "g++", "c++")):
            (programs / program.name).symlink_to(program)
    return Machine(project, programs)


@pytest.fixture
def ready(bare: Machine) -> Machine:
    bare.add("python3", PYTHON)
    bare.add("g++", "#!/bin/sh\n")
    return bare


def test_all_that_is_missing_is_said_at_once_and_nothing_is_made(bare: Machine) -> None:
    done = bare.quickstart()
    assert done.returncode == UNFIT
    assert "Python 3.11 or newer is missing (tried python3 " in done.stderr
    assert "a C++ compiler is missing (g++): apt-get install g++" in done.stderr
    assert sorted(path.name for path in bare.project.iterdir()) == ["pyproject.toml", "scripts"]


def test_through_a_link_from_another_folder(bare: Machine) -> None:
    link = bare.programs / "quickstart"
    link.symlink_to(bare.project / "scripts" / "quickstart")
    assert "Python 3.11 or newer is missing" in bare.run(link).stderr


def test_old_python_is_named(ready: Machine) -> None:
    done = ready.quickstart(VERSION="3.9")
    assert done.returncode == UNFIT
    assert "python3 is 3.9" in done.stderr
    assert "compiler" not in done.stderr


def test_newer_python_beside_an_old_one_is_taken(ready: Machine) -> None:
    ready.add("python3", "#!/bin/sh\necho 3.9\n")
    ready.add("python3.13", "#!/bin/sh\nexit 127\n")  # a version manager's stand-in
    ready.add("python3.12", PYTHON)
    done = ready.set_up()
    assert "making .venv with python3.12, Python 3.12" in done.stdout


def test_python_that_is_asked_for_and_not_there(ready: Machine) -> None:
    done = ready.set_up(PYTHON="python3.99")
    assert done.returncode == UNFIT
    assert "(tried python3.99)" in done.stderr


def test_python_without_ensurepip_and_headers(ready: Machine) -> None:
    done = ready.quickstart(BARE="yes")
    assert done.returncode == UNFIT
    assert "apt-get install python3.12-venv" in done.stderr
    assert "apt-get install python3.12-dev" in done.stderr


def test_compiler_of_cxx(ready: Machine) -> None:
    assert "a C++ compiler is missing (clang-99)" in ready.set_up(CXX="clang-99 -O1").stderr


def test_venv_of_somebody_else_is_left_alone(ready: Machine) -> None:
    (ready.project / ".venv").mkdir()
    done = ready.set_up()
    assert done.returncode == UNFIT
    assert "move it away" in done.stderr
    assert not list((ready.project / ".venv").iterdir())


def test_second_run_only_looks(ready: Machine) -> None:
    assert ready.set_up("cpu", "dev").returncode == 0
    assert ready.slow == ["venv", ".[cpu,dev]"]
    assert ready.set_up("cpu", "dev").stdout == ""
    assert ready.set_up("cpu").returncode == 0
    assert ready.slow == []


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/constraints.txt"])
def test_change_installs_into_the_same_venv(ready: Machine, name: str) -> None:
    ready.set_up()
    ready.change(name)
    ready.set_up()
    assert ready.slow == [".[cpu]"]


def test_further_extra_installs_into_the_same_venv(ready: Machine) -> None:
    ready.set_up("cpu")
    ready.set_up("cpu", "dev")
    assert ready.slow == [".[cpu,dev]"]


def test_other_python_makes_the_venv_anew(ready: Machine) -> None:
    ready.set_up("cpu", "dev")
    ready.set_up("cpu", PREFIX="/opt/other")
    assert ready.slow == ["venv", ".[cpu]"]
    ready.set_up("cpu", "dev", PREFIX="/opt/other")
    assert ready.slow == [".[cpu,dev]"]


def test_project_that_was_moved_makes_the_venv_anew(ready: Machine) -> None:
    ready.set_up()
    moved = Machine(ready.project.rename(ready.project.with_name("moved")), ready.programs)
    moved.set_up()
    assert moved.slow == ["venv", ".[cpu]"]


def test_install_that_was_killed_is_made_anew(ready: Machine) -> None:
    ready.set_up()
    ready.change("pyproject.toml")
    assert ready.set_up(KILL="yes").returncode != 0
    ready.set_up()
    assert ready.slow == ["venv", ".[cpu]"]
    ready.set_up()
    assert ready.slow == []


def test_pip_that_fails_before_it_writes_costs_no_venv(ready: Machine) -> None:
    ready.set_up()
    ready.change("pyproject.toml")
    assert ready.set_up(FAIL="yes").returncode == UNFIT
    ready.set_up()
    assert ready.slow == [".[cpu]"]


def test_what_pip_says_is_shown(ready: Machine) -> None:
    done = ready.set_up(FAIL="yes")
    assert done.returncode == UNFIT
    assert "pip failed: ERROR: the disk is full" in done.stderr


def test_size_is_said_before_the_download(ready: Machine) -> None:
    assert "about 0.35 GB" in ready.set_up(WOULD="ray-2 torch-2.13.0+cpu").stdout
    assert "PIP_EXTRA_INDEX_URL" in ready.set_up(PREFIX="/b", WOULD="nvidia-cudnn-cu13-9 ray-2 torch-2.13.0").stdout


def test_pin_that_cannot_be_had(ready: Machine) -> None:
    done = ready.set_up(NO_PIN="yes")
    assert done.returncode == 0
    assert "constraints.txt cannot be had" in done.stdout
    assert "constraints" not in (ready.programs.parent / "calls").read_text(encoding="utf-8")


def test_torch_of_the_python_is_used(ready: Machine) -> None:
    ready.set_up(TORCH="2.14.0+cpu")
    assert ready.slow == ["venv", ".", ".[cpu]"]
    (pth,) = ready.project.glob(".venv/lib/*/site-packages/*.pth")
    assert pth.read_text(encoding="utf-8") == "/opt/with torch\n"
    assert "constraints" not in (ready.programs.parent / "calls").read_text(encoding="utf-8").splitlines()[-1]


def test_torch_that_is_too_old_is_not_used(ready: Machine) -> None:
    ready.set_up(TORCH="2.9.1")
    assert ready.slow == ["venv", ".[cpu]"]


@pytest.mark.parametrize("name", ["stop_observable_container.sh", "cache/inspect_caches.sh"])
def test_no_container_engine(bare: Machine, name: str) -> None:
    for engine in ("docker", "podman"):
        (bare.programs / engine).unlink(missing_ok=True)
    done = bare.run(bare.project / "scripts" / name)
    assert (done.returncode, done.stdout) == (UNFIT, "")
    (line,) = done.stderr.splitlines()
    assert "no container engine can be used: docker is not installed; podman is not installed (install " in line
