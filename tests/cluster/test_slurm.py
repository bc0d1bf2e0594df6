"""cluster/slurm under a real Slurm of three hosts: who joins, whose exit status the job has, and what is left."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import STEP_S, Hosts
from tests.cluster.stand_ins import stand_in_for_ray, write_program
from tests.needs import needs_hosts, needs_root, needs_tool
from tests.processes import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    needs_root("start Slurm"),
    needs_tool("slurmctld"),
    needs_tool("slurmd"),
    needs_hosts(),
]

ROOT = Path(__file__).parents[2]
NODES = Path(__file__).with_name("nodes.py")
NAMES = ("gh-1", "gh-2", "gh-3")
GPUS = 4
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
UNFIT, FAILED, INTERRUPTED = 3, 12, 130

CONF = """
ClusterName=test
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={base}/state
SlurmctldPidFile={base}/slurmctld.pid
SlurmdSpoolDir={base}/%n
SlurmdPidFile={base}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
ReturnToService=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""
"""No munge and no cgroups, of which these hosts have none; so nothing but the job itself ends what the job started."""


@dataclass
class Slurm:
    """A controller and three hosts, and a job's environment: the stand-ins' programs before all others."""

    base: Path
    hosts: Hosts

    def __post_init__(self) -> None:
        for folder in ("programs", "state", *NAMES):
            (self.base / folder).mkdir()
        nodes = [
            f"NodeName={name} NodeAddr={address} CPUs={os.cpu_count()} RealMemory=1000 Gres=gpu:{GPUS}\n"
            for name, address in self.hosts.addresses.items()
        ]
        conf = CONF.format(base=self.base, controller=NAMES[0], address=self.hosts.addresses[NAMES[0]])
        self._write("slurm.conf", conf + "".join(nodes))
        gpus = [self.base / f"gpu{number}" for number in range(GPUS)]
        for gpu in gpus:
            gpu.touch()
        self._write("gres.conf", "".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        self._write("cgroup.conf", "CgroupPlugin=cgroup/v1\n")  # or it looks for what is not mounted there

    def _write(self, name: str, text: str) -> None:
        (self.base / name).write_text(text, encoding="utf-8")

    @property
    def env(self) -> dict[str, str]:
        programs = (str(self.base / "programs"), str(Path(sys.executable).parent), os.environ["PATH"])
        return {
            **os.environ,
            "PATH": ":".join(programs),
            "HOME": str(self.base),
            "NOTES": str(self.base),
            "SLURM_CONF": str(self.base / "slurm.conf"),
            "RAYPREP_RAY_FOLDER": str(self.base / "ray"),
            "RAYPREP_OBJECT_STORE_BYTES": str(80 << 20),
        }

    def start(self) -> None:
        for host, daemon in ((NAMES[0], "slurmctld"), *((name, "slurmd") for name in NAMES)):
            self.hosts.start(host, daemon, "-D", env=self.env)
        wait_for(lambda: self.run("sinfo", "--noheader", "--format=%t %D") == f"idle {len(NAMES)}\n", "idle hosts")

    def run(self, *args: str | Path) -> str:
        started = self.hosts.start(NAMES[0], *args, env=self.env)
        said, _ = started.communicate(timeout=STEP_S)
        return said

    def submit(self, *args: str) -> str:
        """From the project's folder. The job's id."""
        log = f"--output={self.base}/job.log"
        script = ROOT / "cluster" / "slurm" / "rayprep.sbatch"
        said = self.run("env", f"--chdir={ROOT}", "sbatch", "--parsable", log, *args, script, "--model", "tiny-dense")
        assert said.strip().isdigit(), said
        return said.strip()

    def ended(self, job: str) -> int:
        """Waits for the end of a job; its exit status."""
        deadline = time.monotonic() + 2 * STEP_S
        while (facts := self._facts(job))["JobState"] not in ENDED:
            assert time.monotonic() < deadline, facts
            time.sleep(0.5)
        status, signum = facts["ExitCode"].split(":")
        assert signum == "0", self.log
        return int(status)

    def _facts(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def log(self) -> str:
        path = self.base / "job.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def rayprep(self, text: str) -> None:
        """A stand-in for it, in bash."""
        write_program(self.base / "programs" / "rayprep", f"#!/bin/bash\n{text}\n")


@pytest.fixture
def slurm(base: Path) -> Iterator[Slurm]:
    with Hosts(*NAMES) as hosts:
        made = Slurm(base, hosts)
        made.start()
        yield made


@pytest.mark.ray
def test_the_job_is_a_cluster_and_ends_as_rayprep_does(slurm: Slurm) -> None:
    seen = slurm.base / "seen.json"
    slurm.rayprep(f'echo "$@"; {sys.executable} {NODES} "$4" >{seen} && exit {FAILED}')
    job = slurm.submit(f"--nodes={len(NAMES)}")
    assert slurm.ended(job) == FAILED, slurm.log
    assert "ensure --cluster --address 10.77.0.1:6379 --model tiny-dense\n" in slurm.log
    nodes = json.loads(seen.read_text(encoding="utf-8"))
    assert {address: node["labels"]["rayprep-host"] for address, node in nodes.items()} == {
        address: name for name, address in slurm.hosts.addresses.items()
    }
    assert [path.name for path in (slurm.base / ".rayprep" / f"slurm-{job}").iterdir()] == ["nodes.log"], "no token"
    assert not list(slurm.base.glob("ray-*"))
    wait_for(lambda: not slurm.hosts.daemons(), "nothing of the job to be left", STEP_S)


def test_the_end_of_the_jobs_time_is_told_to_rayprep(slurm: Slurm) -> None:
    stand_in_for_ray(slurm.base / "programs")
    slurm.rayprep(f'trap "exit {INTERRUPTED}" TERM; echo running; while :; do sleep 0.1; done')
    job = slurm.submit("--nodes=1")
    wait_for(lambda: "running" in slurm.log, "rayprep to run")
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    assert slurm.ended(job) == INTERRUPTED, slurm.log
    wait_for(lambda: not slurm.hosts.daemons(), "nothing of the job to be left", STEP_S)


def test_a_node_that_cannot_start(slurm: Slurm) -> None:
    stand_in_for_ray(slurm.base / "programs")
    job = slurm.submit("--nodes=1", "--export=ALL,RAYPREP_ADDRESS=10.77.0.9:6379")
    assert slurm.ended(job) == UNFIT, slurm.log
    assert "0: head: 10.77.0.9 is no address of this host" in slurm.log
    assert "0 of 1 nodes are up after " in slurm.log
