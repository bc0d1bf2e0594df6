"""The scripts around a real container: started, filled, stopped and started again, and all that can go wrong there."""

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayprep.client import StageName, find_manifest, needs_prep, read_manifest
from tests.conftest import QUICK_COMPILER, Built
from tests.container.podman import IMAGE, ROOT, STEP_S, Podman, borrowed
from tests.host.other_user import as_user
from tests.needs import needs_podman
from tests.processes import wait_for

SCRIPTS = ROOT / "scripts"
OWNER, GROUP = 4321, 4322
"""The host's user: neither root nor the one that the image was made with."""
BAD_REQUEST, UNFIT, INTERRUPTED = 2, 3, 130
PORT_BASE = "20000"
"""Beside whatever telemetry this machine has."""
TINY = ("--model", "tiny-dense", "--batch-size", "1", "--device", "cpu", "--inductor")


def needs_inductor(home: Path) -> bool:
    """What a harness decides that finds the pointer, and reads nothing else but what that names."""
    roots = {"XDG_DATA_HOME": str(home / ".local/share"), "XDG_CACHE_HOME": str(home / ".cache")}
    return StageName.INDUCTOR in needs_prep(read_manifest(find_manifest(roots)), "tiny-dense")


@dataclass
class Host:
    """A host with an empty home folder, whose name has a space, and its user's commands, which go by sudo."""

    podman: Podman
    home: Path
    precompiled: Path
    name: str

    @property
    def telemetry(self) -> Path:
        return self.home / ".local/share/sglang-dev/telemetry"

    @property
    def profiles(self) -> Path:
        return self.home / ".cache/sglang/profiles"

    @property
    def env(self) -> dict[str, str]:
        hidden = ("HOST_PROFILES_ROOT", "HOST_TELEMETRY_ROOT", "HOST_MODELS_ROOT", "XDG_CACHE_HOME", "XDG_DATA_HOME")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        sudo = {"SUDO_UID": str(OWNER), "SUDO_GID": str(GROUP), "HOME": str(self.home)}
        return {**inherited, **self.podman.env, **sudo, "CONTAINER_ENGINE": "podman", "RAYPREP_CONTAINER": self.name}

    def popen(self, script: str, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPTS / script, *args],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(script, *args, **env)
        out, err = process.communicate(timeout=STEP_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("start_observable_container.sh", *self.arguments(*options), **env)

    def arguments(self, *options: str) -> tuple[str, ...]:
        """Of a start whose container has what this machine lends it."""
        compiler = ("--env", f"CXX={QUICK_COMPILER}", "--env", "RAYPREP_PCH=/pch", f"--volume={self.precompiled}:/pch")
        ours = (*borrowed(), *compiler, "--env", "TORCHINDUCTOR_VEC_ISA_OK=1", *options)
        return ("--image", IMAGE, "--port-base", PORT_BASE, "--", *ours)

    def stop(self) -> subprocess.CompletedProcess[str]:
        return self.run("stop_observable_container.sh")

    @property
    def pointer(self) -> Path:
        return self.telemetry / "container_run_meta.env"

    @property
    def manifest(self) -> dict[str, Any]:
        """As a program on the host finds it."""
        lines = dict(line.split("=", 1) for line in self.pointer.read_text(encoding="utf-8").splitlines())
        path = lines["CONTAINER_RUN_META_JSON_HOST"].strip("'")
        loaded: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return loaded

    def log(self) -> list[str]:
        return Path(self.manifest["session_log"]["host_path"]).read_text(encoding="utf-8").splitlines()

    def harness(self) -> bool:
        """What the host's user decides; and root, who goes first, since a Python may lie where only root can import."""
        decided = needs_inductor(self.home)
        assert as_user(OWNER, lambda: needs_inductor(self.home)) == decided
        return decided

    def bring(self, caches: Path) -> None:
        """Caches from elsewhere, as the host's user would copy them in."""
        for name in (".rayprep", "torchinductor"):
            shutil.copytree(caches / name, self.profiles / name, dirs_exist_ok=True)
        for path in (self.profiles, *self.profiles.rglob("*")):
            os.chown(path, OWNER, GROUP)

    def of_others(self) -> list[Path]:
        """What in the home folder is not its user's, or cannot be read by their group."""
        found = []
        for path in self.home.rglob("*"):
            facts = path.lstat()
            readable = stat.S_ISLNK(facts.st_mode) or facts.st_mode & stat.S_IRGRP
            if (facts.st_uid, facts.st_gid) != (OWNER, GROUP) or not readable:
                found.append(path)
        return found


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    base = Path(tempfile.mkdtemp(prefix="rayprep-podman-", dir="/tmp"))
    base.chmod(0o755)
    made = Podman(base)
    made.make_image()
    yield made
    made.close()
    shutil.rmtree(base)


@pytest.fixture
def host(podman: Podman, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Host]:
    """Not below pytest's folder, which is root's alone."""
    base = Path(tempfile.mkdtemp(prefix="rayprep host ", dir="/tmp"))
    base.chmod(0o755)
    home, precompiled = base / "home", base / "pch"
    for folder in (home, precompiled):
        folder.mkdir()
        os.chown(folder, OWNER, GROUP)
    yield Host(podman, home, precompiled, f"rayprep-test-{worker_id}")
    podman.close()
    shutil.rmtree(base)


def begin(host: Host) -> dict[str, Any]:
    """Starts it from an empty home, and returns its manifest."""
    started = host.start()
    assert started.returncode == 0, started.stderr
    assert f"{host.name} is running" in started.stdout
    manifest = host.manifest
    assert manifest["manifest"]["host_path"] in started.stdout
    caches = manifest["profile_cache"]["start"]
    assert caches["torchinductor"]["path"] == ".cache/sglang/profiles/torchinductor"
    assert caches["profiles_root"] == str(host.profiles)
    assert not caches["torchinductor"]["valid"]
    assert host.harness()
    return manifest


def end(host: Host) -> None:
    """Stops it; nothing runs, and nothing is another user's."""
    stopped = host.stop()
    assert stopped.returncode == 0, stopped.stderr
    assert host.podman.containers == []
    assert host.of_others() == []


def populate(host: Host) -> dict[str, Any]:
    """The result of a run that ends well, said once each in the log."""
    done = host.run("cache/populate_caches.sh", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    place = host.manifest["prep_result"]
    assert f"RESULT_JSON {place['container_path']}" in done.stdout
    log = host.log()
    assert len([line for line in log if line.startswith("RESULT_STATUS ok ")]) == 1
    events = [line for line in log if line.startswith("OPTIMIZE_JSON ")]
    assert len(events) == len(set(events)) > 4
    assert not host.harness()
    result: dict[str, Any] = json.loads(Path(place["host_path"]).read_text(encoding="utf-8"))
    return result


def begin_again(host: Host, first: dict[str, Any]) -> None:
    """Another container finds the caches that the first one has left."""
    assert host.start().returncode == 0
    second = host.manifest
    assert second["run_id"] != first["run_id"]
    assert second["profile_cache"]["start"]["torchinductor"]["valid"]
    assert not host.harness()


@pytest.mark.container
@needs_podman()
def test_from_an_empty_home_to_a_next_container(host: Host, built: Built) -> None:
    """With caches that this machine has made before, which spares their compiling."""
    first = begin(host)
    again = host.start()
    assert again.returncode == 0
    assert f"{host.name} is running already" in again.stdout
    assert host.manifest["run_id"] == first["run_id"]

    inside = ("exec", "--user", f"{OWNER}:{GROUP}", host.name)
    host.podman.ask(*inside, "sh", "-c", "echo inside >/profiles/seen; id -u >>/profiles/seen; id -un >>/profiles/seen")
    assert (host.profiles / "seen").read_text(encoding="utf-8") == f"inside\n{OWNER}\ndevuser\n"
    (host.telemetry / "seen").write_text("outside", encoding="utf-8")
    assert host.podman.ask(*inside, "cat", "/telemetry/seen") == "outside"
    for path in (host.profiles / "seen", host.telemetry / "seen"):
        path.unlink()

    host.bring(built.roots.profiles)
    assert populate(host)["stages"]["inductor"]["status"] == "noop"
    end(host)

    begin_again(host, first)
    inspected = host.run("cache/inspect_caches.sh", "--inductor", "--json", "--device", "cpu")
    assert json.loads(inspected.stdout)["torchinductor"]["valid"]
    assert '  "torchinductor": {' in host.log()
    reset = host.run("cache/reset_caches.sh", "--yes", "--json", "--inductor")
    assert json.loads(reset.stdout)["removed"], reset.stderr
    assert any(line.startswith("[RESET torchinductor] removed ") for line in host.log())
    assert host.harness()
    failed = host.run("cache/populate_caches.sh", "--model", "/models/none", "--inductor")
    assert failed.returncode == BAD_REQUEST
    assert len([line for line in host.log() if "rayprep: error" in line]) == 1
    assert "rayprep: error" in failed.stderr
    end(host)
    assert "nothing to stop" in host.stop().stdout


@pytest.mark.container
@pytest.mark.torch
@pytest.mark.slow
@needs_podman()
def test_from_an_empty_home_to_caches_that_the_next_container_finds(host: Host) -> None:
    first = begin(host)
    broken_off = host.popen("cache/populate_caches.sh", *TINY)
    wait_for(lambda: any('"name":"inductor","phase":"start"' in line for line in host.log()), "the build to begin")
    assert host.manifest["optimizations"]["inductor"]["reason"] == "in_progress_or_aborted"
    broken_off.send_signal(signal.SIGINT)
    _, err = broken_off.communicate(timeout=STEP_S)
    assert broken_off.returncode == INTERRUPTED, err
    assert len([line for line in host.log() if line.startswith("RESULT_STATUS partial ")]) == 1
    assert host.harness()

    assert populate(host)["stages"]["inductor"]["status"] == "ok"
    assert host.manifest["optimizations"]["inductor"]["size_delta_bytes"] > 0
    end(host)

    begin_again(host, first)
    spec = host.home.parent / "spec.json"
    spec.write_text(json.dumps({"model_path": "tiny-dense", "batch_sizes": [1]}), encoding="utf-8")
    found = host.run("cache/populate_caches.sh", "--spec-file", str(spec), "--device", "cpu", "--inductor")
    assert "[OPTIMIZE inductor] noop (valid_signature)" in found.stdout, found.stderr
    end(host)


@pytest.mark.container
@needs_podman()
def test_container_that_dies_at_once_is_not_taken_for_an_old_one(host: Host) -> None:
    host.telemetry.mkdir(parents=True)
    old = host.telemetry / "container_runs" / "container-run-old" / "container_run_meta.json"
    host.pointer.write_text(f"CONTAINER_RUN_META_JSON_HOST='{old}'\n", encoding="utf-8")
    for folder in (host.telemetry, *host.telemetry.parents):
        if host.home in folder.parents:
            os.chown(folder, OWNER, GROUP)
    program = ["sh", "-c", "echo the driver is too old >&2; exit 7"]
    done = host.start(f"--entrypoint={json.dumps(program)}")
    assert done.returncode == UNFIT
    assert "the driver is too old" in done.stderr
    assert f"{host.name} has ended before its run began" in done.stderr
    assert "container-run-old" not in done.stdout

    assert host.run("cache/inspect_caches.sh").returncode == UNFIT
    asleep = '--entrypoint=["sh", "-c", "trap exit TERM; sleep 600 & wait"]'
    late = host.start(asleep, CONTAINER_START_S="1")
    assert late.returncode == UNFIT
    assert f"{host.name} has written no manifest within 1 s" in late.stderr
    assert host.podman.ask("ps", "--quiet") == "", "it is not left running"
    broken_off = host.popen("start_observable_container.sh", *host.arguments(asleep))
    wait_for(lambda: host.podman.ask("ps", "--quiet"), "the container")
    broken_off.send_signal(signal.SIGINT)
    _, err = broken_off.communicate(timeout=STEP_S)
    assert broken_off.returncode == INTERRUPTED, err
    assert host.podman.ask("ps", "--quiet") == ""
    assert host.stop().returncode == 0
    assert host.podman.containers == []


@pytest.mark.container
@needs_podman()
def test_what_a_start_would_do(host: Host) -> None:
    done = host.run(
        "start_observable_container.sh", "--dry-run", "--image", IMAGE, "--name", "other", "--", "-v", "/a b:/c"
    )
    assert done.returncode == 0, done.stderr
    assert list(host.home.iterdir()) == []
    folders, command = done.stdout.splitlines()
    assert folders.startswith("mkdir -p ")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[:5] == ["podman", "run", "--detach", "--name", "other"]
    assert words[-3:] == ["-v", "/a b:/c", IMAGE]
    assert f"type=bind,source={host.profiles},target=/profiles" in words
    assert {"--network", "--cap-add", f"RUN_FILE_UID={OWNER}", f"RUN_FILE_GID={GROUP}"} <= set(words)


@pytest.mark.container
@needs_podman()
def test_what_is_wrong_is_said_in_one_line(host: Host) -> None:
    def said(script: str, *args: str, **env: str) -> tuple[int, str]:
        done = host.run(script, *args, **env)
        assert done.stdout == ""
        (line,) = [line for line in done.stderr.splitlines() if "no GPU on this host" not in line]
        return done.returncode, line

    start = "start_observable_container.sh"
    assert said(start, "--imgae", "x") == (BAD_REQUEST, f"{start}: unknown argument '--imgae' (see --help)")
    assert said(start, "--name", "-x")[0] == BAD_REQUEST
    assert said(start, "--port-base", "many")[0] == BAD_REQUEST
    assert said("cache/populate_caches.sh", "--spec-file", "/none")[0] == BAD_REQUEST
    code, line = said("cache/populate_caches.sh", *TINY)
    assert code == UNFIT
    assert f"{host.name} does not run" in line
    code, line = said(start, "--image", "none:latest")
    assert code == UNFIT
    assert "there is no image none:latest" in line
    code, line = said(start, "--image", IMAGE, HOST_PROFILES_ROOT="/proc/none")
    assert code == UNFIT
    assert "cannot create directory" in line
    assert "/proc/none" in line
    (host.home.parent / "roots").mkdir()
    code, line = said(start, "--image", IMAGE, HOST_TELEMETRY_ROOT=str(host.home.parent / "roots"))
    assert code == UNFIT
    assert "cannot create directory" in line
    assert "Permission denied" in line
    assert said(start, CONTAINER_START_S="soon")[0] == BAD_REQUEST
    code, line = said(start, CONTAINER_ENGINE="no-such-engine")
    assert code == UNFIT
    assert "no container engine can be used: no-such-engine is not installed" in line


@pytest.mark.container
@needs_podman()
def test_engine_that_this_user_may_not_use(host: Host) -> None:
    done = subprocess.run(
        [SCRIPTS / "stop_observable_container.sh"],
        env={**host.env, "XDG_RUNTIME_DIR": str(host.home)},
        user=OWNER,
        group=GROUP,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
    )
    assert done.returncode == UNFIT
    assert "no container engine can be used: podman: " in done.stderr
    assert "join the group docker, or use sudo" in done.stderr
