"""What a stage is to the node that runs it: it plans, it builds, it says which files are its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from rayprep.host.gpu import Gpu
from rayprep.host.layout import Layout
from rayprep.host.means import Means
from rayprep.host.model_files import ModelFiles
from rayprep.model.plan import NotNeeded, StagePlan, Work
from rayprep.model.process_end import Cleanup
from rayprep.model.result import Artifacts, ServerRecord
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice, PrepSpec
from rayprep.model.stages import StageName
from rayprep.sglang.gemm_shapes import GemmShape
from rayprep.sglang.inventory import Answer, Inventory, Refusal
from rayprep.sglang.moe_config_lines import MoeConfigs
from rayprep.store.scan import CacheScan


@dataclass(frozen=True)
class StageRequest:
    """What a stage plans from. `device` is resolved, never `auto`."""

    spec: PrepSpec
    model: ModelFiles
    device: DeviceChoice
    signature: Signature
    means: Means
    answer: Answer | None = None
    """What the installed SGLang says that this model's server needs; null where it was not asked."""

    @property
    def inventory(self) -> Inventory | None:
        return self.answer if isinstance(self.answer, Inventory) else None

    @property
    def listed_by(self) -> Literal["sglang", "tables"]:
        """Who says what a stage's units are, where they are known."""
        return "sglang" if self.inventory else "tables"

    @property
    def refused(self) -> NotNeeded | None:
        """Why nothing is built ahead for a server that SGLang says it will not start."""
        if not isinstance(self.answer, Refusal):
            return None
        return NotNeeded(reason="refused_by_sglang", detail=f"SGLang says: {self.answer.refused}")

    def with_server_args(self, flags: Sequence[str]) -> "StageRequest":
        """The same, for a server with other flags."""
        return replace(self, spec=self.spec.model_copy(update={"server_args": tuple(flags)}))


Report = Callable[[str, int | None, int | None], None]
"""A progress hint, with how many of how many are done where that is known."""


@dataclass(frozen=True)
class BuildContext:
    """What a stage builds with. `deadline` is on the monotonic clock."""

    layout: Layout
    log: Path
    scratch: Path
    """An empty folder of this stage's own, removed afterwards."""
    env: Mapping[str, str]
    gpus: Sequence[Gpu]
    """As many as the request's TP; none on the CPU."""
    lock_descriptors: Sequence[int]
    deadline: float
    cancelled: Callable[[], bool]
    report: Report
    tick: Callable[[], None]
    """To be called several times a second: it sends the heartbeats."""
    ended: Callable[[Cleanup], None]
    """To be called with how each process of the stage was ended, also where it failed."""
    host_gpus: Sequence[Gpu] = ()
    """All that the run holds."""
    alone: Callable[[], None] = lambda: None
    """Returns once no other stage of the run builds."""


@dataclass
class Built:
    """What came of a build. `used` are the files, below the profiles root, that a start from this cache reads.

    They are all that the completion will list: what else is new in a cache may be somebody else's, and half written.
    """

    units: tuple[str, ...]
    whole: bool = False
    """The build wrote anew what an earlier one had left, so that nothing of that one's units may be left."""
    may_be_empty: bool = False
    """It was looked into, and there may rightly be no file to list."""
    used: frozenset[str] = frozenset()
    compiled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    env: dict[str, str] | None = None
    server: ServerRecord | None = None
    elsewhere: frozenset[str] = frozenset()
    """What a server used in the caches that other stages answer for."""
    gemm_shapes: tuple[GemmShape, ...] = ()
    """What a server's log named, planned or not."""
    moe_configs: MoeConfigs | None = None
    """What a server's log said of the MoE kernel's configs; None where no server ran."""
    artifacts: Artifacts | None = None
    """The stage's own part of the result, where only the build knows it; else `describe` gives it."""


class Stage(Protocol):
    """One stage. `plan` is pure: all that it goes by is in the request."""

    name: StageName

    def plan(self, request: StageRequest) -> StagePlan:
        """What would be built here for this request, or why nothing."""
        ...

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        """Builds it and looks at it.

        Raises:
            StageError: it could not be built, with the reason.
            Interrupted: the run was cancelled.
        """
        ...

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        """Of files as new as an aborted run, those that cannot be built upon. Paths are below the profiles root."""
        ...

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        """The stage's own part of `artifacts`: its folder and its count of files, in the contract's field names."""
        ...
