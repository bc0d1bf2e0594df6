"""A Ray cluster of several hosts on one machine: each node has roots, facts and a name of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from rayprep.cli.schema import schema
from rayprep.host.layout import Layout
from tests.conftest import QUICK_COMPILER
from tests.host.test_ports import free_port

FAKES = Path(__file__).resolve().parent.parent / "fakes"
LIBRARIES = (FAKES / "sglang_lib", FAKES / "deep_gemm_lib")
HIDDEN = ("HOST_PROFILES_ROOT", "HOST_TELEMETRY_ROOT", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "RAY_ADDRESS")
STAND_IN = ("--server-arg=--compile", "--skip", "moe_tune", "--skip", "flashinfer")
"""A request for the stand-in SGLang, which fills the caches that it does not find filled."""


@dataclass
class Node:
    """One simulated host."""

    name: str
    base: Path
    gpus: int = 1
    signature: dict[str, object] = field(default_factory=dict)
    """Fields that are said to be others than this machine's."""
    libraries: tuple[Path, ...] = LIBRARIES
    """What stands in for real packages."""
    ray_node: Any = None
    shares: "Node | None" = None
    """A node whose profiles root it has, too."""

    @property
    def layout(self) -> Layout:
        profiles = self.shares.layout.profiles if self.shares else self.base / "profiles"
        return Layout(profiles, self.base / "telemetry", self.name)

    @property
    def env(self) -> dict[str, str]:
        for folder in (self.layout.profiles, self.layout.telemetry, self.base / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        gpu = {"name": "NVIDIA H200", "compute_capability": "sm_90", "sm_count": 132, "memory_bytes": 141 << 30}
        gpus = [{**gpu, "uuid": f"GPU-{self.base}-{index}", "index": index} for index in range(self.gpus)]
        # Libraries bake the root's path in; the stand-in does not, and real hosts have one path.
        kernels = {"deep_gemm_version": "0.1.4.post1", "nvcc": "13.0.88"}
        signature = {"profiles_root": "/profiles", **kernels, **self.signature}
        facts = {"gpus": gpus, "driver_version": "580.95", "cuda_version": "13.0", "signature": signature}
        (self.base / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        return {
            "HOST_PROFILES_ROOT": str(self.layout.profiles),
            "HOST_TELEMETRY_ROOT": str(self.layout.telemetry),
            "HOME": str(self.base / "home"),
            "CXX": str(QUICK_COMPILER),
            "TORCHINDUCTOR_VEC_ISA_OK": "1",
            "RAYPREP_FACTS": str(self.base / "facts.json"),
            "DG_JIT_NVCC_COMPILER": str(FAKES / "nvcc"),
            "FAKE_NVCC_LOG": str(self.base / "calls"),
            "PYTHONPATH": os.pathsep.join([*map(str, self.libraries), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FAKE_HOLD": str(self.hold),
        }

    @property
    def hold(self) -> Path:
        """While it exists, this host's servers get no further than their start."""
        return self.base / "hold"

    @property
    def compiles(self) -> int:
        """How often DeepGEMM's compiler was run, but for the few small kernels that every listing needs."""
        calls = self.base / "calls"
        text = calls.read_text(encoding="utf-8") if calls.exists() else ""
        return sum("/listing." not in line for line in text.splitlines())

    def artifacts(self) -> dict[str, int]:
        found = [path for path in self.layout.profiles.glob("[!.]*/**/*") if path.is_file()]
        return {str(path.relative_to(self.layout.profiles)): path.stat().st_size for path in found}


@dataclass
class Fleet:
    """The cluster, and the command line against it."""

    base: Path
    cluster: Any
    nodes: dict[str, Node]

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    @property
    def telemetry(self) -> Path:
        return self.base / "driver" / "telemetry"

    def add(self, node: Node) -> None:
        node.ray_node = self.cluster.add_node(
            num_cpus=1,
            num_gpus=node.gpus,
            object_store_memory=80 << 20,
            env_vars=node.env,
            labels={"rayprep-host": node.name},
            wait=True,
        )
        self.nodes[node.name] = node

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "rayprep", *args, "--address", self.address]

    @property
    def env(self) -> dict[str, str]:
        home = self.base / "driver" / "home"
        home.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        return {**inherited, "HOME": str(home), "HOST_TELEMETRY_ROOT": str(self.telemetry)}

    def run(self, *args: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Any other command."""
        return subprocess.run(
            self.command(*args), env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start(self, *args: str, run_id: str) -> "subprocess.Popen[str]":
        asked = ("ensure", "--cluster", "--model", "tiny-dense", "--run-id", run_id, *args)
        return subprocess.Popen(
            self.command(*asked),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ensure(self, *args: str, run_id: str, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        run = self.start(*args, "--warmup-port", str(free_port()), run_id=run_id)
        try:
            out, err = run.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            run.kill()
            out, err = run.communicate()
            raise AssertionError(f"not done in {timeout} s:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(run.args, run.returncode, out, err)

    def result(self, run_id: str) -> dict[str, Any]:
        """The fleet's result, which fits its schema, as do the hosts' that it names."""
        folder = self.telemetry / "container_runs" / run_id
        found: dict[str, Any] = json.loads((folder / "fleet_result.json").read_text(encoding="utf-8"))
        jsonschema.validate(found, schema("fleet_result"), jsonschema.Draft202012Validator)
        for host in found["hosts"].values():
            if host["result"]:
                own = json.loads((folder / host["result"]).read_text(encoding="utf-8"))
                jsonschema.validate(own, schema("prep_result"), jsonschema.Draft202012Validator)
        return found

    def host_result(self, run_id: str, host: str) -> dict[str, Any]:
        path = self.telemetry / "container_runs" / run_id / "hosts" / host / "prep_result.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


@contextmanager
def fleet_of(base: Path, *nodes: Node) -> Iterator[Fleet]:
    from ray.cluster_utils import Cluster

    named = {"labels": {"rayprep-host": "head"}}
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False, **named}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    fleet = Fleet(base, cluster, {})
    try:
        for node in nodes:
            fleet.add(node)
        yield fleet
    finally:
        cluster.shutdown()
