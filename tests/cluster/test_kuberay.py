"""cluster/kuberay: held against the schemas of Kubernetes and KubeRay, and what it makes of Ray started for real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.hosts import STEP_S, Hosts
from tests.cluster.stand_ins import write_program
from tests.needs import needs_hosts
from tests.processes import wait_for

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "kuberay-v1.schema.json").read_text(encoding="utf-8"))
NODES = Path(__file__).with_name("nodes.py")
KUBERNETES = ("1.28", kubernetes_validate.latest_version())

Document = dict[str, Any]


def load(name: str) -> Document:
    loaded: Document = yaml.safe_load((KUBERAY / name).read_text(encoding="utf-8"))
    return loaded


def cluster_of(name: str) -> Document:
    """The RayCluster's spec of either file."""
    spec: Document = load(name)["spec"]
    cluster: Document = spec.get("rayClusterSpec", spec)
    return cluster


def templates(cluster: Document) -> list[Document]:
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


both = pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])


def test_no_file_is_forgotten() -> None:
    assert {path.name for path in KUBERAY.glob("*.yaml")} == {"cluster.yaml", "job.yaml", "network-policy.yaml"}


@both
def test_kuberay_takes_it(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(load(name), SCHEMA)


@both
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_its_pods(name: str, version: str) -> None:
    for template in templates(cluster_of(name)):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_network_policy(version: str) -> None:
    kubernetes_validate.validate(load("network-policy.yaml"), version, strict=True)


def test_the_schemas_find_a_misspelt_field() -> None:
    wrong = load("cluster.yaml")
    wrong["spec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)
    pod = {"apiVersion": "v1", "kind": "Pod", **templates(cluster_of("cluster.yaml"))[0]}
    pod["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)


def test_both_are_one_cluster_but_for_the_dashboard() -> None:
    alone, job = cluster_of("cluster.yaml"), cluster_of("job.yaml")
    assert alone["headGroupSpec"]["rayStartParams"].pop("include-dashboard") == "false"
    (container,) = job["headGroupSpec"]["template"]["spec"]["containers"]
    container["ports"].remove({"name": "dashboard", "containerPort": 8265})
    assert alone == job


@both
def test_nothing_of_it_is_open_to_the_outside(name: str) -> None:
    assert "0.0.0.0" not in (KUBERAY / name).read_text(encoding="utf-8")
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rayprep-token"}
    head = cluster["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    guarded = load("network-policy.yaml")["spec"]["podSelector"]["matchLabels"].items()
    for template in templates(cluster):
        assert guarded <= template["metadata"]["labels"].items()
        assert "hostNetwork" not in template["spec"]


@both
def test_each_pod_is_a_host_as_rayprep_needs_it(name: str) -> None:
    for template in templates(cluster_of(name)):
        spec = template["spec"]
        (container,) = spec["containers"]
        assert spec["shareProcessNamespace"] is True
        environment = {each["name"]: each.get("value") for each in container["env"]}
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert {environment["HOST_PROFILES_ROOT"], environment["HOST_TELEMETRY_ROOT"], "/dev/shm"} == set(mounts)
        (shm,) = [each for each in spec["volumes"] if each["name"] == mounts["/dev/shm"]]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


def test_ray_has_the_settings_of_the_bare_hosts() -> None:
    scripts = [(CLUSTER / "bare" / name).read_text(encoding="utf-8") for name in ("env", "head")]
    words = {word for script in scripts for word in script.split()}
    container = templates(cluster_of("cluster.yaml"))[0]["spec"]["containers"][0]
    settings = [
        f"{each['name']}={each['value']}" for each in container["env"] if each["name"].startswith(("RAY_", "SPT_"))
    ]
    assert len(settings) == 10
    assert set(settings) <= words


def start_command(group: Document, *words: str) -> str:
    """What KubeRay makes of a group's parameters, and gives to the container in KUBERAY_GEN_RAY_START_CMD."""
    parameters = {
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        "num-gpus": str(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]),
        **group["rayStartParams"],
        "object-store-memory": str(80 << 20),
    }
    return " ".join(["ray", "start", *words, "--block", *(f" --{key}={value} " for key, value in parameters.items())])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.namespaces
@needs_hosts()
def test_its_pods_are_a_cluster_that_runs_the_job(base: Path) -> None:
    job = load("job.yaml")["spec"]
    head, (workers,) = job["rayClusterSpec"]["headGroupSpec"], job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = head["template"]["spec"]["containers"]
    seen = base / "seen.json"
    write_program(base / "rayprep", f"#!/bin/sh\n{sys.executable} {NODES} 127.0.0.1:6379 >{seen} && exit 12\n")

    def env(host: str, command: str = "") -> dict[str, str]:
        settings = {each["name"]: each.get("value", host) for each in container["env"]}
        path = f"{base}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of the secret"}
        given = {"KUBERAY_GEN_RAY_START_CMD": f"{command} --temp-dir={base / host}"}
        return {**os.environ, **settings, **token, **given, "PATH": path, "HOME": str(base)}

    def pod(host: str, command: str) -> subprocess.Popen[str]:
        kubelet = ("bash", "-c", 'for start in 1 2 3; do "$@"; done', "kubelet")  # starts again what ends
        return hosts.start(host, *kubelet, *container["command"], *container["args"], env=env(host, command))

    def healthy(address: str) -> bool:
        get = container["readinessProbe"]["httpGet"]
        url = f"http://{address}:{get['port']}{get['path']}"
        asked = hosts.start("gh-1", sys.executable, "-c", f"import urllib.request as u; u.urlopen({url!r}, timeout=5)")
        asked.communicate(timeout=STEP_S)
        return asked.returncode == 0

    with Hosts("gh-1", "gh-2") as hosts:
        pod("gh-1", start_command(head, "--head", "--dashboard-host=0.0.0.0", "--node-ip-address=10.77.0.1"))
        wait_for(lambda: healthy("10.77.0.1"), "the head's probe", STEP_S)
        pod("gh-2", start_command(workers, "--address=10.77.0.1:6379"))
        wait_for(lambda: healthy("10.77.0.2"), "the worker's probe", STEP_S)
        submit = ("ray", "job", "submit", "--address=http://127.0.0.1:8265", "--", *job["entrypoint"].split())
        submitted = hosts.start("gh-1", *submit, env=env("gh-1"))
        said, _ = submitted.communicate(timeout=STEP_S)
        assert submitted.returncode != 0
        assert "exit code 12" in said, said
        nodes = json.loads(seen.read_text(encoding="utf-8"))
        assert {address: node["labels"]["rayprep-host"] for address, node in nodes.items()} == {
            address: name for name, address in hosts.addresses.items()
        }
