"""`ensure --cluster` on real Ray nodes of one machine, with the stand-in SGLang: who builds, receives and proves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from tests.conftest import write_model
from tests.fleet.fleet import FP8_MODEL, KERNELS, STAND_IN, Fleet, Node, actors, fleet_of
from tests.host.test_ports import free_port
from tests.processes import import_s, wait_for

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""Without them a server on several GPUs can put those of a shared host out of service."""
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("three")
    env = {**NO_MULTICAST, "FAKE_SHOWS": " ".join(NO_MULTICAST)}
    nodes = (Node(f"gpu-{index}", base / f"n{index}", extra_env=env) for index in range(3))
    with fleet_of(base, *nodes) as fleet:
        yield fleet


@pytest.fixture
def fleet(three: Fleet) -> Fleet:
    """With empty caches."""
    for node in three.nodes.values():
        shutil.rmtree(node.layout.profiles)
        node.layout.profiles.mkdir()
    return three


def assert_nothing_is_left_to_do(fleet: Fleet) -> None:
    before = {name: node.artifacts() for name, node in fleet.nodes.items()}
    done = fleet.ensure(*STAND_IN, run_id="again")
    assert done.returncode == 0
    assert "serve:noop=3 verify:skipped=3" in done.stdout
    assert {name: node.artifacts() for name, node in fleet.nodes.items()} == before
    assert all(not host["received"] for host in fleet.result("again")["hosts"].values())


def test_one_builds_two_receive_and_all_prove(fleet: Fleet) -> None:
    done = fleet.ensure(*STAND_IN, run_id="first")
    assert done.returncode == 0, done.stdout + done.stderr
    found = fleet.result("first")
    assert done.stdout.splitlines()[-2:] == [
        f"RESULT_JSON {fleet.telemetry}/container_runs/first/fleet_result.json",
        "RESULT_STATUS ok hosts:verified=3 deep_gemm:skipped=3 moe_tune:skipped=3 flashinfer:skipped=3 "
        "inductor:skipped=3 serve:noop=2,ok=1 verify:ok=3",
    ]
    hosts = found["hosts"]
    builder = next(name for name, host in hosts.items() if host["built"])
    receivers = sorted(hosts.keys() - {builder})
    assert [hosts[name]["received"][0]["source"] for name in receivers] == [builder, builder]
    assert {host["new_files"] for host in hosts.values()} == {0}
    assert_nothing_is_left_to_do(fleet)
    artifacts = fleet.nodes[builder].artifacts()
    assert artifacts
    for name in receivers:
        # What the server used of stages that were skipped has come along.
        assert fleet.nodes[name].artifacts() == artifacts
    own = fleet.host_result("first", receivers[0])
    assert (own["node"]["host"], own["node"]["group"], own["run"]["host"]) == (receivers[0], "group-1", receivers[0])
    assert own["snapshot_before"]["triton"]["file_count"] == 0, "from before it received"
    assert own["heartbeats"]["verify"] > 0
    written = fleet.nodes[receivers[0]].layout.result("first")
    assert json.loads(written.read_text(encoding="utf-8")) == own
    for log in ("serve", "verify"):
        said = (fleet.nodes[builder].layout.run("first") / f"{log}.log").read_text(encoding="utf-8").splitlines()
        assert {f"{name}={value}" for name, value in NO_MULTICAST.items()} <= set(said), "the host's own reach a server"


@pytest.mark.slow
def test_a_host_with_a_valid_cache_is_the_source(fleet: Fleet) -> None:
    assert fleet.ensure(*STAND_IN, "--nodes", "gpu-1", run_id="alone").returncode == 0
    done = fleet.ensure(*STAND_IN, run_id="others")
    assert done.returncode == 0
    hosts = fleet.result("others")["hosts"]
    assert [hosts[name]["built"] for name in sorted(hosts)] == [[], [], []]
    assert {each["source"] for name in ("gpu-0", "gpu-2") for each in hosts[name]["received"]} == {"gpu-1"}


@pytest.mark.slow  # by default one builds and the others receive
def test_much_to_build_is_dealt_over_the_hosts(fleet: Fleet) -> None:
    asked = ("--model", str(FP8_MODEL), "--deep-gemm", "--no-verify")
    done = fleet.ensure(*asked, "--deal-from", "0", run_id="dealt")
    assert done.returncode == 0, done.stdout + done.stderr
    hosts = fleet.result("dealt")["hosts"]
    helpers = [name for name, host in hosts.items() if host["helped"]]
    (publisher,) = [name for name, host in hosts.items() if host["built"]]
    assert len(helpers) == 2, "two products to build"
    assert publisher in helpers
    assert {name for name, host in hosts.items() if host["helped_kernels"]} == set(helpers)
    assert sum(host["helped_kernels"].get("deep_gemm", 0) for host in hosts.values()) >= KERNELS
    compiled = {name: len(node.compiles) for name, node in fleet.nodes.items()}
    assert {name for name, count in compiled.items() if count} == set(helpers)
    assert sum(compiled.values()) == KERNELS
    kept = [node.artifacts() for node in fleet.nodes.values()]
    assert kept[0]
    assert kept[1:] == kept[:1] * 2
    for node in fleet.nodes.values():
        assert len(list(node.layout.completions(StageName.DEEP_GEMM).glob("*.json"))) == 1, "no part is left"


@pytest.mark.slow  # by default the rollout's rules alone say so
def test_a_canary_goes_first_and_stops_the_rest(fleet: Fleet) -> None:
    faulty = ("--server-arg=--fault=dies-at-start", "--canary", "1", "--wave", "1", "--node-retries", "0")
    done = fleet.ensure(*STAND_IN, *faulty, run_id="canary")
    assert done.returncode == 14, done.stdout + done.stderr
    found = fleet.result("canary")
    assert found["status"] == "error"
    states = {name: host["state"] for name, host in found["hosts"].items()}
    assert sorted(states.values()) == ["failed", "waiting", "waiting"]
    assert "not started: 2" in found["stopped"]
    failed = next(host for host in found["hosts"].values() if host["state"] == "failed")
    assert (failed["error"]["stage"], failed["error"]["error_type"]) == ("serve", "server_start_failed")


@pytest.mark.slow  # by default a campaign runs on one host
def test_a_campaign_keeps_its_hosts_from_model_to_model(fleet: Fleet, tmp_path: Path) -> None:
    """The request in the middle fails. What all of them did is at the head's metrics endpoint."""
    other = write_model(tmp_path / "other", rms_norm_eps=1e-5)
    requests = [{"model": "tiny-dense"}, {"model": "tiny-dense", "tp": 3}, {"model": str(other)}]
    file = tmp_path / "campaign.json"
    file.write_text(json.dumps({"campaign": requests}), encoding="utf-8")
    asked = (*STAND_IN, "--json", "--verify", "none", "--spec-file", str(file), "--warmup-port", str(free_port()))
    run = fleet.start(*asked, run_id="night")
    assert run.stdout is not None
    lines, at_work = [], []
    for line in run.stdout:
        if line.startswith("RESULT_JSON"):  # all hosts of the request have ended, and its driver has not
            at_work.append(sorted(each.pid for each in actors("ray::HostAgent", "ray::GpuClaim")))
        lines += [line] if line.startswith("RESULT") else []
    assert run.wait(30) == 2, lines
    assert lines[-1] == "RESULT_CAMPAIGN partial night-1:ok night-2:error night-3:ok\n"
    files = [line.split("/")[-2:] for line in lines if line.startswith("RESULT_JSON")]
    assert files == [[f"night-{number}", "fleet_result.json\n"] for number in (1, 2, 3)]
    assert len(at_work[0]) == 6, "an agent and a claim of each host"
    assert at_work[1] == at_work[0]
    assert {host["state"] for host in fleet.result("night-3")["hosts"].values()} == {"ready"}
    wait_for(lambda: not actors("ray::HostAgent", "ray::GpuClaim"), "the campaign's hosts to be let go")

    # The coordinator has counted since the cluster's first run; Ray shows it within 10 s.
    shipped = sum(each["bytes"] for run_id in fleet.run_ids for each in received(fleet, run_id))
    expected = {
        "ray_rayprep_shipped_bytes_total": shipped,
        "ray_rayprep_hosts/ready": 3,
        "ray_rayprep_hosts/failed": 0,
    }
    wait_for(lambda: expected.items() <= fleet.metrics().items(), f"Ray's view to have {expected}")
    assert fleet.metrics()["ray_rayprep_stage_duration_seconds/serve/ok"] > 0


def received(fleet: Fleet, run_id: str) -> list[dict[str, int]]:
    return [each for host in fleet.result(run_id)["hosts"].values() for each in host["received"]]


@pytest.mark.slow
def test_a_rebuild_is_done_once(fleet: Fleet) -> None:
    assert fleet.ensure(*STAND_IN, run_id="built").returncode == 0
    done = fleet.ensure(*STAND_IN, "--rebuild", "serve", run_id="rebuilt")
    assert done.returncode == 0, done.stdout + done.stderr
    hosts = fleet.result("rebuilt")["hosts"]
    assert sorted(len(host["built"]) for host in hosts.values()) == [0, 0, 1]
    assert sorted(host["stages"]["serve"] for host in hosts.values()) == ["noop", "noop", "ok"]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--nodes", "gpu-9"), 2, "no living node gpu-9"),
        (("--labels", "pool"), 2, "not KEY=VALUE"),
        (("--labels", "pool=none"), 3, "no living node"),
        (("--canary", "0"), 2, "--canary 0"),
        (("--rollout", "all", "--canary", "1"), 2, "exclude each other"),
        (("--model", "/not/here"), 2, "/not/here"),
    ],
)
def test_what_cannot_be_is_one_line(fleet: Fleet, flags: tuple[str, ...], code: int, words: str) -> None:
    done = fleet.ensure(*STAND_IN, *flags, run_id="bad")
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_groups_and_odd_ones_out(tmp_path: Path) -> None:
    """Two kinds of host, one of each odd in something that binds nothing, and two that share their storage."""
    other = {"device_name": "NVIDIA H100", "triton_version": "3.5.0"}
    first = Node("a-0", tmp_path / "a0")
    nodes = [
        first,
        Node("a-1", tmp_path / "a1", shares=first),
        Node("a-2", tmp_path / "a2", signature={"driver_version": "575.57"}),
        Node("b-0", tmp_path / "b0", signature=other),
        Node("b-1", tmp_path / "b1", signature=other),
    ]
    with fleet_of(tmp_path, *nodes) as fleet:
        strict = fleet.ensure(*STAND_IN, "--require-uniform", run_id="strict")
        assert strict.returncode == 3, strict.stdout + strict.stderr
        assert not any(node.artifacts() for node in nodes)
        done = fleet.ensure(*STAND_IN, run_id="kinds")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a-2: driver 575.57 where 4 hosts have 580.95" in done.stdout
        assert "b-0, b-1: triton 3.5.0 where 3 hosts have" in done.stdout
        found = fleet.result("kinds")
        assert {name: group["hosts"] for name, group in found["groups"].items()} == {
            "group-1": ["a-0", "a-1", "a-2"],
            "group-2": ["b-0", "b-1"],
        }
        hosts = found["hosts"]
        assert hosts["a-0"]["store"] == hosts["a-1"]["store"] != hosts["a-2"]["store"]
        builders = [name for name, host in hosts.items() if host["built"]]
        assert [name[0] for name in builders] == ["a", "b"]
        received = {name: [each["source"][0] for each in host["received"]] for name, host in hosts.items()}
        assert sum(map(len, received.values())) == 2, "one of each group: what shares a store needs no shipping"
        assert all(source == name[0] for name, sources in received.items() for source in sources)
        proofs = sorted(host["verify"] for host in hosts.values())
        assert proofs == ["ok"] * 4 + ["skipped"], "a store is proved once"


@pytest.mark.slow
def test_the_commands_that_look_and_clean_up_on_all_hosts(fleet: Fleet) -> None:
    assert fleet.ensure(*STAND_IN, run_id="looked-at").returncode == 0
    doctor = fleet.run("doctor", "--cluster", "--device", "cpu")
    names = {line.split()[0] for line in doctor.stdout.splitlines()}
    assert names > set(fleet.nodes), doctor.stderr
    assert len(names) == 4, "the head, too, which has no GPU"
    seen = json.loads(fleet.run("inspect", "--cluster", "--json").stdout)["hosts"]
    assert seen.keys() == names
    assert [seen[host]["report"]["triton"]["file_count"] for host in fleet.nodes] == [3, 3, 3]
    unasked = fleet.run("reset", "--cluster", "--nodes", "gpu-1")
    assert unasked.returncode != 0, "nobody is there to say yes"
    assert fleet.nodes["gpu-1"].artifacts()
    done = fleet.run("reset", "--cluster", "--nodes", "gpu-1", "--yes")
    assert (done.returncode, fleet.nodes["gpu-1"].artifacts()) == (0, {}), done.stdout + done.stderr
    assert fleet.nodes["gpu-0"].artifacts()


@pytest.mark.slow
def test_a_proof_alone_on_all_hosts(fleet: Fleet) -> None:
    assert fleet.ensure(*STAND_IN, "--verify", "none", run_id="unproved").returncode == 0
    asked = ("--model", "tiny-dense", "--server-arg=--compile", "--run-id", "proof")
    done = fleet.run("verify", "--cluster", *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {host["verify"] for host in fleet.result("proof")["hosts"].values()} == {"ok"}
    fleet.nodes["gpu-2"].layout.cache(CacheName.TRITON).joinpath("ABC/__grp__moe.json").unlink()
    done = fleet.run("verify", "--cluster", *asked[:-1], "loss")
    assert done.returncode == 14, done.stdout + done.stderr
    states = {name: host["state"] for name, host in fleet.result("loss")["hosts"].items()}
    assert states == {"gpu-0": "verified", "gpu-1": "verified", "gpu-2": "failed"}


@pytest.mark.parametrize(
    "skew", [{"ray_version": "2.9.0"}, {"python_version": "3.10.1"}], ids=lambda skew: next(iter(skew))
)
def test_another_ray_or_python_is_one_line_within_ten_seconds(three: Fleet, skew: dict[str, str]) -> None:
    with three.said_to_be(**skew) as (cluster, here):
        done = three.run("status", timeout=10 + 2 * import_s())
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert f"error [ray_unavailable]: the cluster at {three.address} runs {cluster}, and this is {here}" in done.stderr


def test_status_while_nothing_goes_on(fleet: Fleet) -> None:
    done = fleet.run("status")
    assert (done.returncode, done.stdout) == (3, "no run goes on\n")
