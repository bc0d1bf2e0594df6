"""What the `moe_tune` stage, its child and the child's own workers say to each other. No torch here.

The parent writes one `TuneRequest` to a file; the child answers as `child.lines` says, in the end with one
`TunedLine`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field, TypeAdapter

from rayprep.base.records import Record
from rayprep.model.spec import MoeStrategy
from rayprep.model.tuning import RefusedEntry, TuningCounts
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.child.lines import FailLine, StepLine
from rayprep.stages.moe_tune.config_entries import ConfigFiles, Launch, Stock
from rayprep.stages.moe_tune.search import Choice, Group
from rayprep.stages.moe_tune.trial import Measurement, Trial


class TuneRequest(Record):
    """What the child is to tune."""

    shape: MoeShape
    strategy: MoeStrategy
    sizes: tuple[int, ...]
    """Numbers of tokens to tune for."""
    space: tuple[KernelConfig, ...] = ()
    """Tried in place of the strategy's own, where there is one."""
    given: ConfigFiles | None = None
    """Another tuner's files, to be tried as ours are; nothing is measured then."""
    log: str
    """Takes the measurements."""
    kernels: str
    """The Triton cache of the tuning alone; the same as the child's TRITON_CACHE_DIR."""
    campaign: str = ""
    """The Triton cache of the servers, which takes the kernels of what was chosen; empty for none."""
    seed: int
    gpus: tuple[int, ...] = Field(min_length=1)
    """All that the child sees, in its order, by the host's numbers."""
    uuids: tuple[str, ...] = ()
    """Of these GPUs."""
    compilers: int = Field(ge=1)
    """Processes that compile at a time."""
    capability: int
    """Of the GPUs, 90 for sm_90."""
    release: str | None = None
    """Of SGLang."""
    deadline_s: float = Field(gt=0)
    """For one kernel to compile, or one measurement."""


class TunedLine(Record):
    """All is measured."""

    event: Literal["tuned"] = "tuned"
    name: str
    """Of the config file, as SGLang looks for it."""
    down_name: str
    folder: str
    """Of the version of Triton, below `configs/`."""
    triton_version: str
    shipped: str
    """The folder of the configs that ship with SGLang."""
    files: ConfigFiles | None
    """Each entry was launched as a server does. None where SGLang does as well without a file of ours."""
    refused: tuple[RefusedEntry, ...] = ()
    choices: tuple[Choice, ...]
    """For all sizes that were tuned and that the file tells of, now or by an earlier run."""
    counts: TuningCounts
    warnings: tuple[str, ...] = ()


TuneLine = Annotated[StepLine | TunedLine | FailLine, Field(discriminator="event")]
TUNE_LINE: TypeAdapter[StepLine | FailLine | TunedLine] = TypeAdapter(TuneLine)
"""Parses one line of the child's standard output."""


class KernelJob(NamedTuple):
    """One kernel to compile, as Triton describes it: the function, and what it is specialised on."""

    module: str
    name: str
    specialisation: str
    cache: str = ""
    """A Triton cache other than the process's own."""


class RecordedKernels(NamedTuple):
    """The kernels that a trial needs and that no cache in memory has; or why it cannot even be called."""

    jobs: tuple[KernelJob, ...]
    error: str | None = None


class BenchFacts(NamedTuple):
    """What SGLang says of itself on this GPU."""

    name: str
    down_name: str
    folder: str
    triton_version: str
    shipped: str


Call = Trial | Launch
"""What needs kernels."""


class Bench(Protocol):
    """What compiles and measures."""

    unused: dict[int, str]
    """GPUs that could not be opened, and why."""

    def open(self) -> BenchFacts: ...
    def stock(self, tokens: int) -> Stock: ...
    def shipped_sizes(self) -> Sequence[int]:
        """Of which SGLang's own files say something."""
        ...

    def record(self, calls: Sequence[Call]) -> Iterator[tuple[Call, RecordedKernels]]: ...
    def compile(self, jobs: Sequence[KernelJob]) -> Iterator[tuple[KernelJob, str | None]]:
        """Each with why it could not be compiled, or None."""
        ...

    def measure(self, groups: Sequence[Group]) -> Iterator[Measurement]:
        """Each group on one GPU, on its own where that is here, in its order."""
        ...

    def launch(self, launches: Sequence[Launch]) -> Iterator[tuple[Launch, str | None]]:
        """Each with why it does not run, or None."""
        ...
