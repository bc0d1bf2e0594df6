"""What a run has left under the telemetry root, as `rayprep report` and a harness read it; its metrics; a spec file."""

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from rayprep.base.records import Located, Record, to_json
from rayprep.base.sealed import is_sealed, open_seal
from rayprep.base.written import result_text
from rayprep.cli.request import Flags, read_spec_file, resolve_flags
from rayprep.client import read_result
from rayprep.host.run_reader import read_run
from rayprep.model.metrics import HOSTS, SHIPPED, WAITED
from rayprep.report.metrics_file import add_to_metrics_file
from rayprep.report.page.page import render
from tests.fuzz.resealing import resealed
from tests.fuzz.target import Target, require
from tests.model.test_container_manifest import manifest
from tests.report.left_runs import LeftRun, fleet, single


class ResultFile:
    """One result of a run, sealed as today, as an earlier version wrote it, or sealed again after it was changed."""

    def __init__(self, left: LeftRun, path: Path, result: Record) -> None:
        self._left, self._path, self._result = left, path, result
        self._good = result_text(result).encode()

    def targets(self, name: str, share: float) -> list[Target]:
        """In each of the three forms."""
        earlier = to_json(self._result).encode()
        return [
            Target(f"{name}, sealed", self._good, self._read_sealed, "read", share),
            Target(f"{name} of an earlier version", earlier, self._read, "read", share, every_value=23),
            Target(f"{name}, sealed again", open_seal(self._good), self._read_resealed, "read", share),
        ]

    def _read_sealed(self, data: bytes) -> str:
        self._path.write_bytes(data)
        record = read_run(self._left.layout, "run-1")
        if is_sealed(data) and not record.damaged:
            require(open_seal(data) == open_seal(self._good), "read, and not what was written")
        return self._render()

    def _read_resealed(self, data: bytes) -> str:
        return self._read(resealed(data))

    def _read(self, data: bytes) -> str:
        self._path.write_bytes(data)
        return self._render()

    def _render(self) -> str:
        record = read_run(self._left.layout, "run-1")
        render(record).encode()
        location = str(self._path)
        if self._path.name == "prep_result.json" and not record.damaged:
            read_result(manifest(prep_result=Located(container_path=location, host_path=location)))
        return "damaged" if record.damaged else "read"


def result_targets(folder: Path) -> list[Target]:
    """Of one host that has failed, of a fleet, and of one host of it."""
    left = single(folder / "single", fails=True).write()
    one = ResultFile(left, left.folder / "prep_result.json", left.results["host-1"])
    many = fleet(folder / "fleet", ("gpu-0", "gpu-1", "gpu-2", "gpu-3"), failed=["gpu-1"], lost=["gpu-2"]).write()
    assert many.fleet is not None
    whole = ResultFile(many, many.folder / "fleet_result.json", many.fleet)
    other = fleet(folder / "hosts", ("gpu-0", "gpu-1"), failed=["gpu-1"]).write()
    part = ResultFile(other, other.host_file("gpu-1"), other.results["gpu-1"])
    return [
        *one.targets("result of a host", 0.4),
        *whole.targets("result of a fleet", 0.3),
        *part.targets("result of a host of a fleet", 0.1),
    ]


def log_target(folder: Path) -> Target:
    """A session log: whatever stands in it, the page shows the results and what can be read."""
    left = fleet(folder, ("gpu-0", "gpu-1", "gpu-2"), failed=["gpu-1"], lost=["gpu-2"]).write()
    path = left.layout.session_log("run-1")
    good = path.read_bytes()
    whole = len(read_run(left.layout, "run-1").events)

    def read(data: bytes) -> str:
        path.write_bytes(data)
        record = read_run(left.layout, "run-1")
        for event in record.events:
            require(event.human_line.isprintable(), "a line does not print")
            event.json_line.encode()
        render(record).encode()
        return "all" if len(record.events) == whole else "some"

    return Target("session log", good, read, "all", 0.4, every_value=5)


def metrics_target(folder: Path) -> Target:
    """What node_exporter reads: whatever was there, a parser reads it when a run has added its samples."""
    path = folder / "prometheus" / "rayprep.prom"
    add_to_metrics_file(path, [SHIPPED.sample(10, "a"), WAITED.sample(1.5, "a"), HOSTS.sample(1, "failed")])
    good = path.read_bytes()

    def read(data: bytes) -> str:
        path.write_bytes(data)
        add_to_metrics_file(path, [HOSTS.sample(2, "seen")])
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
        samples = [sample for family in families for sample in family.samples]
        require(any(sample.labels == {"status": "seen"} and sample.value == 2 for sample in samples), "it is not there")
        return "kept" if len(samples) == 4 else "anew"

    return Target("metrics", good, read, "kept", 0.6)


def spec_target(folder: Path) -> Target:
    """A spec file, as a request's flags are joined with it."""
    folder.mkdir()
    path = folder / "spec.json"
    moe = {"mode": "tune", "policy": {"strategy": "auto", "batch_sizes": [1, 8]}}
    document = {
        "schema_version": "1",
        "model_path": "tiny-dense",
        "tp": 2,
        "batch_sizes": [1, 8],
        "timeout_s": 60.5,
        "mem_fraction": 0.8,
        "server_args": ["--enable-torch-compile"],
        "ops": {"moe": moe, "inductor": {"mode": "skip"}},
    }

    def read(data: bytes) -> str:
        path.write_bytes(data)
        file = read_spec_file(path)
        for request in file.campaign or (file,):
            to_json(resolve_flags(Flags(model="tiny-dense"), request))
        return "read"

    return Target("spec file", json.dumps(document, indent=2).encode(), read, "read", every_value=1)


def run_targets(folder: Path) -> list[Target]:
    """All of these."""
    return [
        *result_targets(folder / "results"),
        log_target(folder / "log"),
        metrics_target(folder / "metrics"),
        spec_target(folder / "spec"),
    ]
