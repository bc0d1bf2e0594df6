"""A host with an H200 that is not there and an SGLang that is a stand-in: all else is the real node."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

import jsonschema
import psutil
import pytest

from rayprep.base.written import parse_result
from rayprep.cli.schema import schema
from rayprep.host.environment import STORE_MARK, store_mark
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.host.layout import Layout
from rayprep.host.process import marked_processes
from rayprep.model.completion import Completion
from rayprep.model.events import Event
from rayprep.model.result import PrepResult
from rayprep.model.spec import StageOp, resolve
from rayprep.model.stages import StageName
from rayprep.node import NodeRequest, ensure, take_survey
from rayprep.store.completions import read_completions
from tests.host.test_ports import free_port

FAKES = Path(__file__).resolve().parent.parent / "fakes"
LIBRARY = FAKES / "sglang_lib"
SERVER = (sys.executable, "-I", "-S", str(FAKES / "sglang_server.py"))
"""The stand-in as somebody's own server command begins."""
COMPILES = "--compile"
SKIPPED = {StageName.MOE_TUNE: StageOp.SKIP, StageName.FLASHINFER: StageOp.SKIP}
"""Their builders need more than a stand-in."""


def fault(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--fault", name))


class Flags(TypedDict, total=False):
    """What a test asks for; the names are those of `PrepSpec`."""

    model: str
    ops: Mapping[StageName, StageOp]
    selected: tuple[StageName, ...]
    slices: int | str
    mem_fraction: float
    batch_sizes: Sequence[int]
    moe_strategy: str
    moe_batch_sizes: tuple[int, ...]
    server_command: tuple[str, ...]
    verify: bool
    timeout_s: float


@dataclass
class Host:
    """One profiles root, and runs against it. LIBRARY must be on sys.path."""

    base: Path
    events: list[Event] = field(default_factory=list)
    runs: int = 0
    gpu_count: int = 1

    def __post_init__(self) -> None:
        for folder in (self.layout.profiles, self.layout.telemetry, self.base / "home"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "profiles", self.base / "telemetry")

    @property
    def gpus(self) -> GpuInventory:
        # A lock belongs to a GPU of the host, so two tests at once have one each, of two runs of all tests as well.
        uuid = f"GPU-test-{os.getpid()}"
        gpus = (
            Gpu(f"{uuid}-{index}", "NVIDIA H200", "sm_90", 132, 141 << 30, index) for index in range(self.gpu_count)
        )
        return GpuInventory(gpus=tuple(gpus), driver_version="580.1", cuda_version="13.0")

    @property
    def environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        path = os.pathsep.join([str(LIBRARY), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**inherited, "HOME": str(self.base / "home"), "PYTHONPATH": path}

    def request(self, *server_args: str, verify_only: bool = False, **flags: Unpack[Flags]) -> NodeRequest:
        """What the latest run is asked for."""
        args = {"server_args": (COMPILES, *server_args), "warmup_port": free_port(), "timeout_s": 60, "ops": SKIPPED}
        return NodeRequest(
            resolved=resolve({"model": "tiny-dense", **args, **flags}),
            run_id=f"run-{self.runs}",
            profiles_root=str(self.layout.profiles),
            telemetry_root=str(self.layout.telemetry),
            verify_only=verify_only,
        )

    def ensure(
        self,
        *server_args: str,
        verify_only: bool = False,
        faults: str = "",
        cancelled: Callable[[], bool] = lambda: False,
        **flags: Unpack[Flags],
    ) -> PrepResult:
        """A run with a result that is on disk, fits its schema, and left no process.

        Args:
            faults: of every server that the run starts.
        """
        self.runs += 1
        self.events = []
        asked = self.request(*server_args, verify_only=verify_only, **flags)
        environ = {**self.environ, "FAKE_FAULTS": faults}
        survey = take_survey(asked, environ, gpus=self.gpus)
        result = ensure(asked, environ, self.events.append, cancelled, survey)
        written = self.layout.result(asked.run_id).read_bytes()
        assert parse_result(PrepResult, written) == result
        jsonschema.validate(json.loads(written), schema("prep_result"), jsonschema.Draft202012Validator)
        assert self.processes() == []
        return result

    def processes(self) -> list[psutil.Process]:
        """Whatever of a run's processes lives, guards too."""
        ours = {os.getpid(), os.getppid()}
        return [each for each in marked_processes(STORE_MARK, store_mark(self.layout)) if each.pid not in ours]

    def completion(self, stage: StageName = StageName.SERVE) -> Completion | None:
        """Of the one thing that was built."""
        found, unreadable = read_completions(self.layout, stage)
        assert (len(found) < 2, unreadable) == (True, [])
        return found[0] if found else None

    def markers(self) -> list[str]:
        return [path.name for path in self.layout.markers.glob("*/*")]

    def log(self, name: str) -> Path:
        """A log of the latest run."""
        return self.layout.run(f"run-{self.runs}") / f"{name}.log"

    def artifact(self, pattern: str) -> Path:
        """The one file in a cache whose path matches."""
        found = [path for path in self.layout.profiles.glob(pattern) if path.is_file()]
        assert len(found) == 1, found
        return found[0]

    def keep(self) -> None:
        """Remembers the caches as they are."""
        shutil.copytree(self.layout.profiles, self.base / "kept")

    def restore(self) -> None:
        """Brings them back, under the path that they were made at."""
        shutil.rmtree(self.layout.profiles)
        shutil.copytree(self.base / "kept", self.layout.profiles)


H = TypeVar("H", bound=Host)


def played(host: H, monkeypatch: pytest.MonkeyPatch, *libraries: Path) -> Iterator[H]:
    """What a fixture makes of a host: the stand-ins are on sys.path, and no process is left at the end."""
    for library in libraries:
        monkeypatch.syspath_prepend(library)
    yield host
    assert host.processes() == []


def statuses(result: PrepResult) -> dict[str, str]:
    return {stage.value: each.status.value for stage, each in result.stages.items()}
