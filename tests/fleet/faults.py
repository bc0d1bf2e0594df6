"""What the tests of a fleet's faults share: a run beside the test, whom to hit, and what must hold afterwards."""

import contextlib
import functools
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import psutil

from rayprep.cli.schema import schema
from rayprep.fleet.coordinator.lease_file import LeaseFile
from rayprep.host.environment import STORE_MARK, store_mark
from rayprep.host.layout import Layout
from rayprep.host.process import marked_processes
from rayprep.model.completion import Completion
from rayprep.model.fleet.leases import Granted, Holder
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from rayprep.store.markers import read_markers
from rayprep.store.snapshot import wrong_hashes
from tests.fleet.fleet import STAND_IN, Fleet, Node
from tests.host.test_ports import free_port
from tests.processes import alive, family, named, wait_for

PROBE = Holder(host="probe", invocation="probe", node_id="probe")


class Run:
    """A run of `ensure --cluster` that goes on beside the test; what it prints is read as it comes."""

    def __init__(self, fleet: Fleet, run_id: str, *args: str, asked: Sequence[str] = STAND_IN) -> None:
        self.process = fleet.start(*asked, "--json", "--warmup-port", str(free_port()), *args, run_id=run_id)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def said(self, *words: str) -> str | None:
        """The first line with all `words`."""
        return next((line for line in list(self.lines) if all(word in line for word in words)), None)

    def wait(self, timeout: float = 150) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    @property
    def text(self) -> str:
        assert self.process.stderr is not None
        return "".join(self.lines) + (self.process.stderr.read() if self.process.poll() is not None else "")


def empty(fleet: Fleet) -> None:
    """Takes away all caches, and whatever is known of them."""
    for node in fleet.nodes.values():
        shutil.rmtree(node.layout.profiles)
        node.layout.profiles.mkdir()


def hold(fleet: Fleet) -> None:
    """Servers get no further than their start, and DeepGEMM's compilers neither."""
    for node in fleet.nodes.values():
        node.hold.touch()


def release(fleet: Fleet) -> None:
    for node in fleet.nodes.values():
        node.hold.unlink(missing_ok=True)


def held_builder(fleet: Fleet, run: Run) -> Node:
    """The host whose warm-up server waits; all were held."""
    wait_for(lambda: run.said('"name":"serve"', '"hint":"starting the warm-up server"'), "a builder to begin")
    line = run.said('"name":"serve"', '"hint":"starting the warm-up server"')
    assert line is not None
    return next(node for name, node in fleet.nodes.items() if f'"host":"{name}"' in line)


def left(fleet: Fleet) -> list[psutil.Process]:
    """What works in any host's store, with its guards."""
    return [process for node in fleet.nodes.values() for process in left_on(node)]


def left_on(node: Node) -> list[psutil.Process]:
    return marked_processes(STORE_MARK, store_mark(node.layout))


def ours(*words: str) -> list[psutil.Process]:
    """Processes of the clusters that this test process has started."""
    return alive(named(family(psutil.Process().pid), *words))


def on(node: Node, *words: str) -> list[psutil.Process]:
    """Those of one host, told by its environment."""
    found = []
    for process in ours(*words):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(node.base / "home"):
                found.append(process)
    return found


def agents_of(node: Node) -> list[psutil.Process]:
    found = on(node, "ray::HostAgent")
    # What one has just forked is called the same, until it is the program that it is forked for.
    pids = {process.pid for process in found}
    return [process for process in found if _parent(process) not in pids]


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def all_is_well(fleet: Fleet, run_id: str, *args: str) -> None:
    """The next run ends ok, on every host that the cluster has, and leaves no marker."""
    done = fleet.ensure(*STAND_IN, *args, run_id=run_id)
    assert done.returncode == 0, done.stdout + done.stderr
    for node in fleet.nodes.values():
        assert not read_markers(node.layout)  # a writer that was killed may have left its temporary file there


def nothing_is_left_behind(fleet: Fleet, run_id: str) -> None:
    """No process of a run, no half cache that reads as valid, no result that does not parse."""
    wait_for(lambda: not ours("ray::HostAgent") and not left(fleet), "the run's processes to end")
    for node in fleet.nodes.values():
        for each in valid(node.layout):
            assert not wrong_hashes(node.layout.profiles, each), f"{node.name}: {each.stage} reads as valid"
    for root in (fleet.telemetry, *(node.layout.telemetry for node in fleet.nodes.values())):
        for kind in ("fleet_result", "prep_result"):
            for path in root.glob(f"container_runs/{run_id}/**/{kind}.json"):
                validator(kind).validate(json.loads(path.read_text(encoding="utf-8")))


def valid(layout: Layout) -> list[Completion]:
    """Builds that a look without hashing takes for good: no marker stands, and all files have their sizes."""
    marked = read_markers(layout)
    found = [each for stage in StageName for each in read_completions(layout, stage)[0]]
    return [
        each
        for each in found
        if each.outcome == "built"
        and (each.identity.model_slug, each.stage) not in marked
        and all(_size(layout.profiles / path) == size for path, (size, _) in each.artifacts.items())
    ]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Of a result file; to make one takes longer than to use it."""
    return jsonschema.Draft202012Validator(schema(kind))


def leases_are_free(fleet: Fleet) -> None:
    """Whatever was leased can be had by somebody else, as soon as a lease of the dead has run out."""
    import ray

    def granted(store: str, key: str) -> bool:
        (answer,) = ray.get(fleet.coordinator.request.remote([(store, key, 0)], PROBE), timeout=30)
        if not isinstance(answer, Granted):
            return False
        ray.get(fleet.coordinator.release.remote([(store, key, answer.epoch)], PROBE), timeout=30)
        return True

    for store, keys in LeaseFile(fleet.leases).read(1, 0).leases.items():
        for key in keys:
            wait_for(functools.partial(granted, store, key), f"the lease on {key} to be free")
