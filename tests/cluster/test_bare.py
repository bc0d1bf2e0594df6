"""cluster/bare: what the scripts give to Ray and refuse, with a stand-in for it, and a real cluster of three hosts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import STEP_S, Hosts
from tests.cluster.stand_ins import stand_in_for_ray, write_program
from tests.host.other_user import NOBODY
from tests.needs import needs_hosts, needs_namespaces, needs_root
from tests.processes import alive, named, wait_for

BARE = Path(__file__).parents[2] / "cluster" / "bare"
NODES = Path(__file__).with_name("nodes.py")
UNFIT = 3


@dataclass
class Machine:
    """A host with a stand-in for Ray."""

    base: Path

    def __post_init__(self) -> None:
        programs = self.base / "programs"
        programs.mkdir()
        stand_in_for_ray(programs)
        write_program(programs / "hostname", "#!/bin/sh\necho 10.0.0.1\n")
        self.env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(self.base),
            "NOTES": str(self.base),
            "RAYPREP_ADDRESS": "10.0.0.1:6379",
            "RAYPREP_RAY_FOLDER": str(self.base / "ray"),
            "RAYPREP_START_S": "5",
            "RAY_AUTH_TOKEN": "of the user's shell",
        }

    @property
    def token(self) -> Path:
        return self.base / ".rayprep" / "ray-token"

    @property
    def calls(self) -> list[str]:
        """The arguments of every call of Ray."""
        notes = self.base / "arguments"
        return notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []

    @property
    def raylets(self) -> list[psutil.Process]:
        return alive([each for each in psutil.process_iter() if self._is_ours(each)])

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "raylet" and process.environ().get("NOTES") == str(self.base)
        except psutil.Error:
            return False

    def start(self, name: str, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BARE / name, *args],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *args: str, **env: str) -> tuple[int, str]:
        started = self.start(name, *args, **env)
        said, _ = started.communicate(timeout=STEP_S)
        return started.returncode, said


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    for raylet in made.raylets:
        raylet.kill()


def test_head_makes_a_token_that_nobody_else_can_read(machine: Machine) -> None:
    assert machine.run("head") == (0, f"{socket.gethostname()} is a node of 10.0.0.1:6379\n")
    assert machine.token.stat().st_mode & 0o777 == 0o600
    token = machine.token.read_text(encoding="ascii")
    assert len(token) == 64
    machine.run("stop")
    assert machine.run("head")[0] == 0
    assert machine.token.read_text(encoding="ascii") == token, "the workers have it already"


def test_what_the_head_gives_to_ray(machine: Machine) -> None:
    machine.run("head", "--num-gpus=4", RAYPREP_HOST="gh-17")
    (arguments,) = machine.calls
    assert "--head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false --num-gpus=4" in arguments
    assert "--labels=rayprep-host=gh-17" in arguments
    assert "--object-store-memory=4294967296" in arguments
    environment = dict(
        line.split("=", 1) for line in (machine.base / "environment").read_text(encoding="utf-8").splitlines()
    )
    assert "RAY_AUTH_TOKEN" not in environment
    expected = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(machine.token),
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SPT_NOENV": "1",
        "HOST_PROFILES_ROOT": "/profiles",
        "HOST_TELEMETRY_ROOT": "/telemetry",
    }
    assert {name: environment.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ["head", "worker"])
def test_token_that_others_can_read_is_refused(machine: Machine, name: str) -> None:
    machine.token.parent.mkdir()
    machine.token.write_text("secret", encoding="ascii")
    machine.token.chmod(0o640)
    code, said = machine.run(name)
    assert (code, machine.calls) == (UNFIT, [])
    assert f"others can read the token in {machine.token}, its mode is 640: chmod 600 it" in said


def test_worker_without_the_token(machine: Machine) -> None:
    code, said = machine.run("worker")
    assert (code, machine.calls) == (UNFIT, [])
    assert f"there is no token in {machine.token}: copy the head's there" in said


def test_worker_waits_for_its_head_and_not_for_ever(machine: Machine) -> None:
    machine.run("head")
    machine.run("stop")
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        code, said = machine.run("worker", RAYPREP_ADDRESS=address, RAYPREP_START_S="1")
        assert (code, len(machine.calls)) == (UNFIT, 1)
        assert f"nothing answers at {address} after 1 s" in said
        worker = machine.start("worker", RAYPREP_ADDRESS=address)
        head.listen()
        said, _ = worker.communicate(timeout=STEP_S)
        assert worker.returncode == 0, said
    assert f"--address={address}" in machine.calls[-1]
    assert "--head" not in machine.calls[-1]


def test_head_of_another_host(machine: Machine) -> None:
    code, said = machine.run("head", RAYPREP_ADDRESS="10.0.0.2:6379")
    assert (code, machine.calls) == (UNFIT, [])
    assert "10.0.0.2 is no address of this host, which has 10.0.0.1" in said


def test_second_start_is_refused(machine: Machine) -> None:
    machine.run("head")
    code, said = machine.run("head")
    assert (code, len(machine.calls)) == (UNFIT, 1)
    assert f"a node runs here already: {BARE}/stop ends it" in said


def test_start_that_fails_is_cleared_away_and_tried_again(machine: Machine) -> None:
    fails = machine.base / "fails"
    fails.touch()
    code, said = machine.run("head", FAILS=str(fails))
    assert (code, len(machine.calls)) == (0, 2), said
    assert len(machine.raylets) == 1
    machine.run("stop")
    assert not machine.raylets


def test_nobody_else_enters_the_folder_above_rays(machine: Machine) -> None:
    folder = machine.base / "ray"
    folder.mkdir(mode=0o755)
    assert machine.run("head")[0] == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert f"--temp-dir={folder}/ray" in machine.calls[0]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_link_in_the_place_of_the_folder(machine: Machine, slash: str) -> None:
    folder, other = machine.base / "ray", machine.base / "other"
    other.mkdir()
    folder.symlink_to(other)
    code, said = machine.run("head", RAYPREP_RAY_FOLDER=f"{folder}{slash}")
    assert (code, machine.calls) == (UNFIT, [])
    assert f"{folder} is a link" in said
    assert not list(other.iterdir())


@needs_root()
def test_folder_of_somebody_else(machine: Machine) -> None:
    folder = machine.base / "ray"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    code, said = machine.run("head")
    assert (code, machine.calls) == (UNFIT, [])
    assert f"{folder} is somebody else's" in said


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_could_write_in(machine: Machine, mode: int) -> None:
    folder = machine.base / "ray"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "start.log").symlink_to(machine.base / "planted")
    code, said = machine.run("head")
    assert (code, machine.calls) == (UNFIT, [])
    assert f"others can write in {folder}, its mode is {mode:o}: remove it" in said
    assert not (machine.base / "planted").exists()


def test_in_the_foreground_until_it_is_told_to_end(machine: Machine) -> None:
    head = machine.start("head", "--block")
    wait_for(lambda: machine.raylets, "Ray to start")
    wait_for(lambda: head.stdout is not None and "is a node of" in head.stdout.readline(), "the head to say so")
    assert "--block" not in machine.calls[0]
    head.send_signal(signal.SIGTERM)
    head.communicate(timeout=STEP_S)
    assert head.returncode == 128 + signal.SIGTERM
    assert not machine.raylets


def test_in_the_foreground_until_ray_ends(machine: Machine) -> None:
    head = machine.start("head", "--block")
    wait_for(lambda: machine.raylets, "Ray to start")
    machine.raylets[0].kill()
    said, _ = head.communicate(timeout=STEP_S)
    assert head.returncode == UNFIT
    assert "Ray has ended" in said


@pytest.mark.namespaces
@needs_namespaces()
def test_process_1_must_reap(machine: Machine) -> None:
    command: list[str | Path] = ["unshare", "-rp", "--fork", "--mount-proc", BARE / "head"]
    done = subprocess.run(command, env=machine.env, capture_output=True, text=True, check=False, timeout=STEP_S)
    assert (done.returncode, machine.calls) == (UNFIT, [])
    assert "docker run --init, or tini" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.namespaces
@needs_hosts()
def test_three_hosts(base: Path) -> None:
    names = ("gh-1", "gh-2", "gh-3")

    def env(host: str) -> dict[str, str]:
        home = base / host
        return {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAYPREP_ADDRESS": "10.77.0.1:6379",
            "RAYPREP_RAY_FOLDER": str(home / "ray"),
            "RAYPREP_OBJECT_STORE_BYTES": str(80 << 20),
        }

    def ended(started: subprocess.Popen[str]) -> str:
        said, _ = started.communicate(timeout=STEP_S)
        assert started.returncode == 0, said
        return said

    def token(host: str) -> Path:
        return base / host / ".rayprep" / "ray-token"

    with Hosts(*names) as hosts:
        client = (sys.executable, NODES, "10.77.0.1:6379")
        ended(hosts.start("gh-1", BARE / "head", env=env("gh-1")))
        stranger = hosts.start("gh-2", *client, env={**os.environ, "HOME": str(base)})
        bystander = hosts.start("gh-2", "sleep", "600")
        for name in names[1:]:
            token(name).parent.mkdir(parents=True)
            shutil.copy2(token("gh-1"), token(name))
        for worker in [hosts.start(name, BARE / "worker", env=env(name)) for name in names[1:]]:
            ended(worker)

        known = {**env("gh-1"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token("gh-1"))}
        seen = json.loads(ended(hosts.start("gh-1", *client, env=known)).splitlines()[-1])
        assert {address: node["labels"]["rayprep-host"] for address, node in seen.items()} == {
            address: name for name, address in hosts.addresses.items()
        }
        for node in seen.values():
            assert node["nice"] == 0
            assert "RAY_AUTH_TOKEN" not in node["environ"]
            assert node["environ"]["HOST_PROFILES_ROOT"] == "/profiles"
        said, _ = stranger.communicate(timeout=STEP_S)
        assert stranger.returncode != 0
        assert "InvalidAuthToken" in said

        assert len(named(hosts.daemons(), "raylet/raylet")) == len(names)
        folders = [base / name / "ray" for name in names]
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * len(names)
        assert all((folder / "ray" / "session_latest" / "logs").is_dir() for folder in folders)
        ended(hosts.start("gh-2", BARE / "stop", env=env("gh-2")))
        assert len(named(hosts.daemons(), "raylet/raylet")) == len(names) - 1, "only that host's"
        for name in ("gh-3", "gh-1"):
            ended(hosts.start(name, BARE / "stop", env=env(name)))
        wait_for(lambda: not hosts.daemons(), "the init to reap all that is left")
        assert bystander.poll() is None
