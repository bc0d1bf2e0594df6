"""The scripts that drive the container, against stand-ins for docker and podman. A real one is in tests/container."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.processes import alive, family, wait_for

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
START, STOP = "start_observable_container.sh", "stop_observable_container.sh"
BAD_REQUEST, UNFIT, INTERRUPTED = 2, 3, 130
STEP_S = 60

ENGINE = r"""#!/bin/bash
own=$STATE/${0##*/}
echo "${0##*/} $1 ${*: -1}" >>"$STATE/calls"
gate() { until [ -e "$STATE/go" ]; do sleep 0.05; done; }
case $1 in "$DEAF") trap '' TERM && sleep 30 ;; "$HANGS") exec sleep 30 ;; esac
case $* in
"container inspect"*Status*) cat "$own" ;;
"container inspect"*Env*) cat "$own.env" ;;
run*)
    [ "$GATE" != run ] || gate
    printf 'CONTAINER_RUN_ID=theirs\n' >"$own.env"
    echo running >"$own"
    [ -z "$TAKEN" ] || { echo 'the name is in use' >&2 && exit 125; }
    printf '%s\n' "$@" | grep -E '^(CONTAINER_RUN_ID|RUN_FILE_.ID)=' >"$own.env"
    ;;
exec*" cat "*)
    run=$(sed -n 's/^CONTAINER_RUN_ID=//p' "$own.env")
    echo "CONTAINER_RUN_META_JSON=/telemetry/container_runs/$run/c.json"
    ;;
exec*snapshot*) [ "$GATE" != snapshot ] || gate ;;
exec*--end*) touch "$STATE/ended" && while kill -0 "$(cat "$STATE/client")" 2>/dev/null; do sleep 0.05; done ;;
exec*) echo $$ >"$STATE/client" && until [ -e "$STATE/ended" ]; do sleep 0.05; done && exit 11 ;;
stop*) echo exited >"$own" ;;
rm*) rm "$own" ;;
esac
"""
"""Has at most one container, whose state and environment are two files.

GATE names what waits for the test, HANGS what never ends, and DEAF what only a kill ends. With TAKEN somebody else has
begun a container of that name. A rayprep that is called ends with 11 once it is told to, before the engine has answered
who told it.
"""


@dataclass
class Host:
    """With both engines, and an empty home."""

    base: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.programs, self.base / "home"):
            folder.mkdir(parents=True)
        for name in ("docker", "podman"):
            (self.programs / name).write_text(ENGINE, encoding="utf-8")
            (self.programs / name).chmod(0o755)

    @property
    def programs(self) -> Path:
        return self.base / "programs"

    def has(self, engine: str, state: str, *env: str) -> None:
        (self.base / engine).write_text(f"{state}\n", encoding="utf-8")
        (self.base / f"{engine}.env").write_text("\n".join([*env, "RUN_FILE_UID=1", ""]), encoding="utf-8")

    def popen(self, script: str, *args: str, **env: str) -> subprocess.Popen[str]:
        base = str(self.base)
        settings = {"STATE": base, "TMPDIR": base, "HOME": f"{base}/home", "PATH": f"{self.programs}:/usr/bin:/bin"}
        process = subprocess.Popen(
            [SCRIPTS / script, *args],
            env={**settings, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return ended(self.popen(script, *args, **env))

    @property
    def calls(self) -> list[str]:
        """`<engine> <command> <last argument>`."""
        path = self.base / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def acts(self) -> list[str]:
        """Of these, what changes something."""
        return [call for call in self.calls if call.split()[1] in ("run", "stop", "rm")]

    def called(self, what: str) -> int:
        return sum(what in call for call in self.calls)

    def open_gate(self) -> None:
        (self.base / "go").touch()

    def end(self) -> None:
        """Whatever a test that failed has left."""
        self.open_gate()
        for process in self.processes:
            for each in alive(family(process.pid)) if process.poll() is None else []:
                each.kill()


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=STEP_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.end()


def test_status_is_that_of_what_was_called_and_not_of_the_signal(host: Host) -> None:
    host.has("docker", "running")
    process = host.popen("cache/populate_caches.sh")
    wait_for((host.base / "client").exists, "the call in the container")
    process.terminate()
    assert ended(process).returncode == 11


def test_container_that_somebody_else_has_made_is_left_alone(host: Host) -> None:
    host.has("docker", "exited")
    done = host.run(START)
    assert (done.returncode, done.stdout) == (UNFIT, "")
    assert done.stderr.endswith(
        ": there is a container sglang-dev that this script has not started: remove it, or give another --name\n"
    )
    assert host.acts == []


def test_container_that_takes_the_name_in_the_same_moment_is_left_alone(host: Host) -> None:
    done = host.run(START, TAKEN="yes")
    assert done.returncode == UNFIT
    assert "docker could not start sglang-dev, see above" in done.stderr
    assert [act.split()[1] for act in host.acts] == ["rm", "run"]


def test_snapshot_has_as_long_as_the_start(host: Host) -> None:
    done = host.run(START, CONTAINER_START_S="1", GATE="snapshot")
    host.open_gate()
    assert done.returncode == UNFIT
    assert "the snapshot of the caches could not be taken" in done.stderr
    assert host.acts[-1] == "docker stop sglang-dev"


def test_connection_that_is_lost_in_a_start_leaves_no_container_without_a_snapshot(host: Host) -> None:
    process = host.popen(START, GATE="snapshot")
    wait_for(lambda: host.called("/container_run_meta.json"), "the snapshot")
    process.send_signal(signal.SIGHUP)
    host.open_gate()
    assert ended(process).returncode == INTERRUPTED
    assert host.acts[-1] == "docker stop sglang-dev"


def test_snapshot_that_a_killed_start_has_not_taken_is_taken_by_the_next(host: Host) -> None:
    killed = host.popen(START, GATE="snapshot")
    wait_for(lambda: host.called("/container_run_meta.json"), "the snapshot")
    killed.kill()
    done = host.run(START)
    host.open_gate()
    ended(killed)
    assert done.returncode == 0, done.stderr
    assert "sglang-dev is running already" in done.stdout
    run_id = re.findall(r"/container_runs/(.*)/c.json", done.stdout)
    snapshots = [call for call in host.calls if "container_run_meta.json" in call]
    assert snapshots == [f"docker exec /telemetry/container_runs/{run_id[0]}/container_run_meta.json"] * 2
    assert host.called(" run ") == 1


def test_two_starts_at_once_start_one_container(host: Host) -> None:
    """Under two names as well: they would have one pointer."""
    first = host.popen(START, GATE="run")
    wait_for(lambda: host.called(" run "), "the first start's container")
    others = [host.popen(START), host.popen(START, "--name", "other")]
    for other in others:
        assert other.stderr is not None
        while "another start goes on: it is waited for" not in (line := other.stderr.readline()):
            assert line, "it has not waited"
    assert host.called(" run ") == 1
    host.open_gate()
    assert "sglang-dev is running\n" in ended(first).stdout
    for other in others:
        done = ended(other)
        assert done.returncode == 0, done.stderr
        assert "is running already" in done.stdout
    assert host.called(" run ") == 1


@pytest.mark.parametrize("docker", [None, "exited"])
def test_stop_finds_the_engine_that_has_the_container(host: Host, docker: str | None) -> None:
    if docker:
        host.has("docker", docker)
    host.has("podman", "running", "CONTAINER_RUN_ID=r")
    assert host.run(STOP).returncode == 0
    assert host.acts == ["podman stop sglang-dev", "podman rm sglang-dev"]
    done = host.run(STOP)
    assert ("nothing to stop" in done.stdout) is (docker is None)
    assert (host.acts[2:] == ["docker rm sglang-dev"]) is bool(docker)


@pytest.mark.slow  # it waits for half a minute
def test_what_does_not_end_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    """All at once, since each takes its time."""
    names = ("lock", "ps", "inspect", "run", "stop")
    locked, asked, looked, started, stopped = hosts = [Host(tmp_path / name) for name in names]
    first = locked.popen(START, GATE="run")
    wait_for(lambda: locked.called(" run "), "the first start's container")
    for each in (looked, stopped):
        each.has("docker", "running", "CONTAINER_RUN_ID=r")
    quick = {"CONTAINER_ENGINE": "docker", "CONTAINER_ANSWER_S": "1", "CONTAINER_START_S": "1", "CONTAINER_STOP_S": "1"}
    processes = [
        locked.popen(START, **quick),
        asked.popen(STOP, **quick, HANGS="ps"),
        looked.popen("cache/inspect_caches.sh", **quick, HANGS="container"),
        started.popen(START, **quick, HANGS="run"),
        stopped.popen(STOP, **quick, DEAF="stop"),
    ]
    try:
        said = [ended(process) for process in processes]
    finally:
        locked.open_gate()
    assert ended(first).returncode == 0
    assert (
        f"another start has held {locked.base}/rayprep-start-{os.getuid()}.lock for too long"
        in said[0].stderr.splitlines()[-1]
    )
    assert "no container engine can be used: docker has not answered within 1 s (" in said[1].stderr
    longer = "(see whether it is well; {} gives it longer)\n"
    for done, line in zip(
        said[2:],
        (
            "docker could not look for sglang-dev within 1 s " + longer.format("CONTAINER_ANSWER_S"),
            "docker could not start sglang-dev within 1 s " + longer.format("CONTAINER_START_S"),
            "docker could not stop sglang-dev within 2 s " + longer.format("CONTAINER_ANSWER_S"),
        ),
        strict=True,
    ):
        assert done.stderr.endswith(f": {line}"), done.stderr
    assert [done.returncode for done in said] == [UNFIT] * len(hosts)


@pytest.mark.parametrize("base", ["99999", "34537", "010", "-1", "many", "99999999999999999999"])
def test_port_base_is_refused_before_anything_starts(host: Host, base: str) -> None:
    done = host.run(START, "--port-base", base)
    assert (done.returncode, done.stdout) == (BAD_REQUEST, "")
    assert done.stderr == f"{START}: --port-base '{base}' is not a number from 0 to 34536 (see --help)\n"
    assert (host.calls, list((host.base / "home").iterdir())) == ([], [])


def test_largest_port_base_is_the_one_of_the_run(host: Host) -> None:
    assert "PORT_BASE=34536" in host.run(START, "--port-base", "34536", "--dry-run").stdout
    init_run = (ROOT / "cluster" / "observability" / "init-run.sh").read_text(encoding="utf-8")
    assert "BASE > 34536" in init_run


@pytest.mark.parametrize(
    ("script", "name"), [(START, "CONTAINER_START_S"), (STOP, "CONTAINER_STOP_S"), (STOP, "CONTAINER_ANSWER_S")]
)
def test_time_that_is_no_number_is_refused(host: Host, script: str, name: str) -> None:
    done = host.run(script, **{name: "soon"})
    assert (done.returncode, host.acts) == (BAD_REQUEST, [])
    assert done.stderr == f"{script}: {name} 'soon' is no number of seconds (see --help)\n"
