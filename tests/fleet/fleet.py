"""A Ray cluster of several hosts on one machine: each node has roots, facts and a name of its own."""

import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import psutil
from prometheus_client.parser import text_string_to_metric_families

from rayprep.base.records import read_tolerant
from rayprep.cli.schema import schema
from rayprep.fleet.actors import join_coordinator, living_nodes
from rayprep.fleet.runtime.session import NAMESPACE
from rayprep.fleet.runtime.versions import RayVersions
from rayprep.host.layout import Layout
from tests.conftest import QUICK_COMPILER
from tests.events import events_in
from tests.host.test_ports import free_port
from tests.processes import family, named

FP8_MODEL = Path(__file__).resolve().parents[1] / "gpu" / "models" / "qwen3-moe-fp8-4l"
KERNELS = 6
"""That the stand-in for DeepGEMM has for this model's two products, beside a small one that each listing needs."""
FAKES = Path(__file__).resolve().parent.parent / "fakes"
LIBRARIES = (FAKES / "sglang_lib", FAKES / "deep_gemm_lib")
HIDDEN = ("HOST_PROFILES_ROOT", "HOST_TELEMETRY_ROOT", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "RAY_ADDRESS")
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""As cluster/bare has them."""
STAND_IN = ("--server-arg=--compile", "--skip", "moe_tune", "--skip", "flashinfer")
"""A request for the stand-in SGLang, which fills the caches that it does not find filled."""


@dataclass
class Node:
    """One simulated host."""

    name: str
    base: Path
    gpus: int = 1
    signature: Mapping[str, object] = field(default_factory=dict)
    """Fields that are said to be others than this machine's."""
    libraries: tuple[Path, ...] = LIBRARIES
    """What stands in for real packages."""
    ray_node: Any = None
    shares: "Node | None" = None
    """A node whose profiles root it has, too."""
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        profiles = self.shares.layout.profiles if self.shares else self.base / "profiles"
        return Layout(profiles, self.base / "telemetry", self.name)

    @property
    def env(self) -> dict[str, str]:
        for folder in (self.layout.profiles, self.layout.telemetry, self.base / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        self.write_facts()
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
            **self.extra_env,
        }

    def write_facts(self) -> None:
        """What is said of it in place of what this machine is; read at every look."""
        gpu = {"name": "NVIDIA H200", "compute_capability": "sm_90", "sm_count": 132, "memory_bytes": 141 << 30}
        gpus = [{**gpu, "uuid": f"GPU-{self.base}-{index}", "index": index} for index in range(self.gpus)]
        # Libraries bake the root's path in; the stand-in does not, and real hosts have one path.
        kernels = {"deep_gemm_version": "0.1.4.post1", "nvcc": "13.0.88"}
        signature = {"profiles_root": "/profiles", **kernels, **self.signature}
        facts = {"gpus": gpus, "driver_version": "580.95", "cuda_version": "13.0", "signature": signature}
        (self.base / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    @property
    def hold(self) -> Path:
        """While it exists, this host's servers and compilers get no further than their start."""
        return self.base / "hold"

    @property
    def compiles(self) -> list[str]:
        """The sources that DeepGEMM's compiler was run on, but for the few small kernels that every listing needs."""
        calls = self.base / "calls"
        text = calls.read_text(encoding="utf-8") if calls.exists() else ""
        return [line for line in text.splitlines() if "/listing." not in line]

    def artifacts(self) -> dict[str, int]:
        found = [path for path in self.layout.profiles.glob("[!.]*/**/*") if path.is_file()]
        return {str(path.relative_to(self.layout.profiles)): path.stat().st_size for path in found}


@dataclass
class Fleet:
    """The cluster, and the command line against it."""

    base: Path
    cluster: Any
    nodes: dict[str, Node]
    coordinator: Any = None
    """Where this process has joined the cluster itself."""
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    @property
    def telemetry(self) -> Path:
        return self.base / "driver" / "telemetry"

    @property
    def leases(self) -> Path:
        return self.telemetry / "coordinator" / "leases.jsonl"

    def shorten_leases(self, ttl_s: float) -> None:
        """Starts the coordinator ahead of the drivers, with leases of another length than theirs would have."""
        import ray

        ray.init(address=self.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        self.coordinator = join_coordinator(living_nodes(), self.leases, ttl_s)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """What the hosts of a run have said until now, as its session log has it."""
        log = self.telemetry / "logs" / f"{run_id}.log"
        return events_in(log) if log.exists() else []

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

    @contextmanager
    def said_to_be(self, **versions: str) -> Iterator[tuple[RayVersions, RayVersions]]:
        """Within the block the cluster says that it runs these versions. Yields what it says, and what it is."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of a compiled module, which has no types

        gcs, key, namespace = GcsClient(address=self.address), b"CLUSTER_METADATA", b"cluster"
        kept = gcs.internal_kv_get(key, namespace=namespace)
        said = {**json.loads(kept), **versions}
        gcs.internal_kv_put(key, json.dumps(said).encode(), True, namespace=namespace)
        try:
            yield read_tolerant(RayVersions, json.dumps(said)), read_tolerant(RayVersions, kept)
        finally:
            gcs.internal_kv_put(key, kept, True, namespace=namespace)

    def restart(self, node: Node, **env: str) -> None:
        """Takes a host away, and brings it back with `env` added to its environment."""
        self.cluster.remove_node(node.ray_node)
        own = node.extra_env
        node.extra_env = {**own, **env}
        self.add(node)
        node.extra_env = own

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "rayprep", *args, "--address", self.address]

    @property
    def env(self) -> dict[str, str]:
        home = self.base / "driver" / "home"
        home.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        return {**inherited, "HOME": str(home), "HOST_TELEMETRY_ROOT": str(self.telemetry)}

    def metrics(self) -> dict[str, float]:
        """What the head's metrics endpoint says of rayprep: name, stage and status -> the sum over the hosts."""
        head: Any = self.cluster.head_node
        with urllib.request.urlopen(
            f"http://{head.node_ip_address}:{head.metrics_export_port}/metrics", timeout=10
        ) as page:
            shown = list(text_string_to_metric_families(page.read().decode()))
        found: defaultdict[str, float] = defaultdict(float)
        for each in (sample for metric in shown for sample in metric.samples if "rayprep" in sample.name):
            labels = [each.labels[name] for name in ("stage", "status") if name in each.labels]
            found["/".join([each.name, *labels])] += each.value
        return dict(found)

    def run(self, *args: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Any other command."""
        return subprocess.run(
            self.command(*args), env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start(self, *args: str, run_id: str) -> "subprocess.Popen[str]":
        model = () if "--spec-file" in args else ("--model", "tiny-dense")
        asked = ("ensure", "--cluster", *model, "--run-id", run_id, *args)
        process = subprocess.Popen(
            self.command(*asked),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end_drivers(self) -> None:
        """Those of a test that failed would go on, and take the next one's hosts."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        self.started.clear()

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

    @property
    def run_ids(self) -> list[str]:
        """Of all runs that have left a result."""
        return [path.parent.name for path in (self.telemetry / "container_runs").glob("*/fleet_result.json")]

    def host_result(self, run_id: str, host: str) -> dict[str, Any]:
        path = self.telemetry / "container_runs" / run_id / "hosts" / host / "prep_result.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def actors(*words: str) -> list[psutil.Process]:
    """Processes of the clusters that this test process has started, by any of their names."""
    return [each for word in words for each in named(family(psutil.Process().pid), word)]


@contextmanager
def fleet_of(base: Path, *nodes: Node, ttl_s: float | None = None) -> Iterator[Fleet]:
    """A cluster of these hosts and a head.

    Args:
        ttl_s: for tests of what dies: so long a lease lasts, and Ray finds out within seconds as on bare hosts.
    """
    import ray
    from ray.cluster_utils import Cluster

    named = {"labels": {"rayprep-host": "head"}}
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False, **named}
    if ttl_s:
        head["_system_config"] = HEALTH_CHECKS
    cluster = Cluster(initialize_head=True, head_node_args=head)
    fleet = Fleet(base, cluster, {})
    try:
        if ttl_s:
            fleet.shorten_leases(ttl_s)
        for node in nodes:
            fleet.add(node)
        yield fleet
    finally:
        if fleet.coordinator is not None:
            ray.shutdown()
        cluster.shutdown()
