"""Fixtures: two empty roots, a real `rayprep` as a subprocess, and one build that several tests start from."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.events import events_in

# Few examples, for they run on every change, and no time limit for each, for the machine is shared.
settings.register_profile("rayprep", max_examples=50, deadline=None)
settings.load_profile("rayprep")

# A shell starts what goes on in the background with SIGINT ignored, nohup what it starts with SIGHUP, and children
# inherit both. That of a test run by nohup itself has to outlive its terminal all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

TIMEOUT_S = 300
REPOSITORY = Path(__file__).parents[1]
QUICK_COMPILER = Path(__file__).parent / "fakes" / "pch" / "g++"
"""The host's own, with the headers that all of TorchInductor's kernels share compiled once."""


@pytest.fixture(scope="session", autouse=True)
def compiled_headers(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Where QUICK_COMPILER keeps them, for all workers."""
    os.environ["RAYPREP_PCH"] = str(shared_folder(tmp_path_factory, worker_id) / "pch")


def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder above the workers' own."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@dataclass
class Roots:
    """The roots of one test, and the command line against them."""

    base: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def profiles(self) -> Path:
        return self.base / "profiles"

    @property
    def telemetry(self) -> Path:
        return self.base / "telemetry"

    @property
    def env(self) -> dict[str, str]:
        """A home of the test's own, so that nothing of the user's is read or written."""
        hidden = ("HOST_PROFILES_ROOT", "HOST_TELEMETRY_ROOT", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        home = self.base / "home"
        home.mkdir(exist_ok=True)
        # Spares each build the compiling of four probes of the CPU, about a third of its time.
        compiler = {"CXX": str(QUICK_COMPILER), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
        return {**inherited, "HOME": str(home), **compiler, **self.extra_env}

    def command(self, name: str, *args: str) -> list[str]:
        roots = ["--profiles-root", str(self.profiles)]
        if name in ("ensure", "explain", "reset", "doctor"):
            roots += ["--telemetry-root", str(self.telemetry)]
        return [sys.executable, "-m", "rayprep", name, *args, *roots]

    def run(self, name: str, *args: str, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Without a terminal, also where pytest has one."""
        return subprocess.run(
            self.command(name, *args),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def alone(self, run_id: str, *args: str) -> list[str]:
        """The command of an `ensure` that starts no Ray. `args` as tests/node/alone.py has them."""
        return [sys.executable, "-m", "tests.node.alone", str(self.profiles), str(self.telemetry), run_id, *args]

    def ensure_alone(self, run_id: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = self.alone(run_id, *args)
        return subprocess.run(
            command, env=self.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def start(self, name: str, *args: str) -> subprocess.Popen[str]:
        """Not waited for; its own process group, so that a test can signal it as a terminal would."""
        return subprocess.Popen(
            self.command(name, *args),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def result(self, run_id: str) -> dict[str, Any]:
        path = self.telemetry / "container_runs" / run_id / "prep_result.json"
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    def log(self, run_id: str) -> Path:
        return self.telemetry / "logs" / f"{run_id}.log"

    def events(self, run_id: str) -> list[dict[str, Any]]:
        return events_in(self.log(run_id))

    def inspect(self, *args: str) -> dict[str, Any]:
        done = self.run("inspect", "--json", *args)
        assert done.returncode == 0, done.stderr
        loaded: dict[str, Any] = json.loads(done.stdout)
        return loaded

    def marker(self, slug: str, stage: str) -> Path:
        return self.profiles / ".in_progress" / slug / stage


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


@dataclass(frozen=True)
class Built:
    """What two runs of one request, started at once, left of tiny-dense at batch size 1: one has built, one waited.

    All workers look at it for the whole session. A test that writes starts from a copy.
    """

    roots: Roots
    stdout: str
    run_id: str
    waiter: str
    build_s: float

    def copy_to(self, roots: Roots) -> None:
        """The same caches under another root: TorchInductor's do not bind to their path."""
        shutil.copytree(self.roots.profiles, roots.profiles, symlinks=True)


ENSURE_TINY = ("--model", "tiny-dense", "--batch-size", "1", "--device", "cpu")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Built:
    """Made once for all workers, by the first that needs it, in the folder above their own. No set-up takes longer."""
    base = shared_folder(tmp_path_factory, worker_id) / "built"
    base.mkdir(exist_ok=True)
    facts = base / "facts.json"
    with FileLock(base / "lock"):
        if not facts.exists():
            facts.write_text(json.dumps(two_at_once(Roots(base))), encoding="utf-8")
    return Built(Roots(base), **json.loads(facts.read_text(encoding="utf-8")))


def two_at_once(roots: Roots) -> dict[str, object]:
    """Waits for both runs to end, and says which of them has built."""
    args = (*ENSURE_TINY, "--json", "--heartbeat-sec", "1")
    runs = {run_id: roots.start("ensure", *args, "--run-id", run_id) for run_id in ("one", "two")}
    stdout = {}
    for run_id, process in runs.items():
        stdout[run_id], err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, stdout[run_id] + err
    stages = {run_id: roots.result(run_id)["stages"]["inductor"] for run_id in runs}
    builder, waiter = sorted(runs, key=lambda run_id: stages[run_id]["status"], reverse=True)
    build_s = stages[builder]["duration_s"]
    return {"stdout": stdout[builder], "run_id": builder, "waiter": waiter, "build_s": build_s}


LONG = ("ray", "torch", "container", "tuner", "slow")
"""The markers of tests that take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first, so that no worker has the last of them left when all others have ended.

    Of these the ones that do without the build, behind one that makes it: else the other workers would wait for it.
    """

    def is_long(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(name) for name in LONG)

    def needs_build(item: pytest.Item) -> bool:
        return "built" in getattr(item, "fixturenames", ())

    items.sort(key=lambda item: (not is_long(item), needs_build(item)))
    maker = next(filter(needs_build, items), None)
    items.sort(key=lambda item: item is not maker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says at which moments processes were hit, so that a run can be repeated."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "hit" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


def write_model(folder: Path, **changes: object) -> Path:
    """A model folder: tiny-dense with some keys changed; a value of None leaves the key out."""
    import rayprep

    shipped = Path(rayprep.__file__).parent / "configs" / "tiny-dense" / "config.json"
    config: Mapping[str, object] = {**json.loads(shipped.read_text(encoding="utf-8")), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder
