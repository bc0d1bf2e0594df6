"""A fleet in which one host has a full disk, another clock or no compiler: that is told, and no other host suffers."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.faults import all_is_well, empty, nothing_is_left_behind, valid
from tests.fleet.fleet import FAKES, LIBRARIES, STAND_IN, Fleet, Node, fleet_of
from tests.needs import needs_root, needs_tool

pytestmark = pytest.mark.ray

MIB = 24
MODEL = Path(__file__).parents[1] / "gpu" / "models" / "qwen3-moe-fp8-4l"
FLASHINFER = (
    *("--model", str(MODEL), "--server-arg=--compile", "--server-arg=--attention-backend=flashinfer"),
    *("--skip", "moe_tune", "--skip", "deep_gemm"),
)
ENV = {
    "FAKE_MIB": str(MIB),
    "PYTHONPATH": os.pathsep.join([str(LIBRARIES[0]), str(FAKES / "flashinfer_lib"), os.environ.get("PYTHONPATH", "")]),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("unlike")
    with fleet_of(base, *(Node(f"gpu-{index}", base / f"n{index}", extra_env=ENV) for index in range(2))) as fleet:
        yield fleet


@pytest.fixture
def two(cluster: Fleet) -> Fleet:
    """Two hosts with empty caches."""
    empty(cluster)
    return cluster


@contextlib.contextmanager
def small(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own at `folder`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow  # by default one host's own disk fills up, in test_bad_input
@needs_root("mount a file system")
@pytest.mark.parametrize(
    ("options", "words", "more"),
    [
        pytest.param(f"size={MIB // 2}m", "bytes free, the package needs", "size=1g", id="seen-before"),
        pytest.param("nr_inodes=40", "No space left on device", "nr_inodes=10k", id="in-the-middle"),
    ],
)
def test_a_full_disk_on_one_host(two: Fleet, options: str, words: str, more: str) -> None:
    assert two.ensure(*STAND_IN, "--nodes", "gpu-0", "--verify", "none", run_id="source").returncode == 0
    full = two.nodes["gpu-1"]
    with small(full.layout.profiles, options):
        done = two.ensure(*STAND_IN, run_id="full")
        found = two.result("full")
        assert (found["status"], found["hosts"]["gpu-0"]["state"]) == ("partial", "verified")
        failed = found["hosts"]["gpu-1"]
        assert (failed["state"], failed["error"]["error_type"]) == ("failed", "insufficient_disk")
        assert words in failed["error"]["message"]
        assert done.returncode == failed["error"]["exit_code"]
        assert not valid(full.layout)
        nothing_is_left_behind(two, "full")
        subprocess.run(["mount", "-o", f"remount,{more}", full.layout.profiles], check=True)
        all_is_well(two, "room")
        assert full.artifacts() == two.nodes["gpu-0"].artifacts()


@pytest.mark.slow
@needs_tool("ninja")
def test_what_a_failed_proof_does_not_take_back_is_not_built_again(two: Fleet) -> None:
    known = {"flashinfer_version": "0.6.14", "nvcc": "13.0.88"}
    builder, other = two.nodes["gpu-0"], two.nodes["gpu-1"]
    wish = builder.hold.with_name("proof-wants-more")
    with facts(builder, **known), facts(other, **known):
        wish.touch()
        try:
            done = two.ensure(*FLASHINFER, run_id="again")
        finally:
            wish.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    hosts = two.result("again")["hosts"]
    assert [(each["state"], each["attempts"]) for each in hosts.values()] == [("verified", 2), ("verified", 1)]
    got = {stage: each["source"] for each in hosts[other.name]["received"] for stage in each["stages"]}
    assert got["flashinfer"] == builder.name
    assert "flashinfer" not in hosts[other.name]["built"]
    assert sum("serve" in each["built"] for each in hosts.values()) == 1, "by whoever came first"


@pytest.mark.slow
@pytest.mark.parametrize(("off_s", "builder"), [(3600, "gpu-1"), (-3600, "gpu-0")])
def test_a_clock_an_hour_off_on_one_host(two: Fleet, off_s: int, builder: str) -> None:
    """The times of its files are the machine's, as those on a file server with a clock of its own."""
    other = next(name for name in two.nodes if name != builder)
    odd = two.nodes["gpu-1"]
    path = os.pathsep.join([str(FAKES / "clock"), ENV["PYTHONPATH"]])
    two.restart(odd, FAKE_CLOCK_S=str(off_s), PYTHONPATH=path)
    try:
        assert two.ensure(*STAND_IN, "--nodes", builder, run_id="first").returncode == 0
        all_is_well(two, "both")
        hosts = two.result("both")["hosts"]
        assert [each["source"] for each in hosts[other]["received"]] == [builder]
        assert (hosts["gpu-0"]["built"], hosts["gpu-1"]["built"]) == ([], [])
        assert times(two.nodes[other]) == times(two.nodes[builder])
        again = two.ensure(*STAND_IN, run_id="again")
        assert "serve:noop=2 verify:skipped=2" in again.stdout, again.stdout + again.stderr
        hours = {two.host_result("again", name)["run"]["started_at"][11:13] for name in two.nodes}
        assert len(hours) == 2, "the clock was right"
    finally:
        two.restart(odd)


def times(node: Node) -> dict[str, int]:
    """When its artifacts were last changed, in nanoseconds since the epoch."""
    return {path: (node.layout.profiles / path).stat().st_mtime_ns for path in node.artifacts()}


@pytest.mark.slow  # by default the grouping alone says so
@needs_tool("ninja")
def test_a_host_without_nvcc_receives_and_does_not_build(two: Fleet) -> None:
    known = {"flashinfer_version": "0.6.14", "nvcc": "13.0.88"}
    bare, other = two.nodes["gpu-0"], two.nodes["gpu-1"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(facts(bare, **{**known, "nvcc": None}))
        stack.enter_context(facts(other, **known))
        alone = two.ensure(*FLASHINFER, "--nodes", bare.name, run_id="alone")
        assert alone.returncode == 12, alone.stdout + alone.stderr
        error = two.result("alone")["hosts"][bare.name]["error"]
        assert (error["stage"], error["error_type"]) == ("flashinfer", "toolchain_mismatch")
        assert "missing: nvcc" in error["message"]

        empty(two)
        done = two.ensure(*FLASHINFER, run_id="together")
        assert done.returncode == 0, done.stdout + done.stderr
        hosts = two.result("together")["hosts"]
        assert {host["group"] for host in hosts.values()} == {"group-1"}
        assert (hosts[bare.name]["built"], hosts[other.name]["built"]) == ([], ["flashinfer", "serve"])
        (received,) = hosts[bare.name]["received"]
        assert received["source"] == other.name
        assert {"flashinfer", "serve"} <= set(received["stages"])
        assert [hosts[name]["verify"] for name in sorted(hosts)] == ["ok", "ok"]
        again = two.ensure(*FLASHINFER, run_id="again-bare")
        assert "flashinfer:noop=2 inductor:skipped=2 serve:noop=2 verify:skipped=2" in again.stdout, again.stdout


@contextlib.contextmanager
def facts(node: Node, **signature: object) -> Iterator[None]:
    """Says other things of a host, which it reads at its next look."""
    before, node.signature = node.signature, signature
    node.write_facts()
    try:
        yield
    finally:
        node.signature = before
        node.write_facts()
