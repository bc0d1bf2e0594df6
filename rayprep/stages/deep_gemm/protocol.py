"""What the `deep_gemm` stage and its child say to each other.

The parent writes one `GemmRequest` to a file; the child answers as `child.lines` says, in the end with one
`KernelsLine`. No torch here.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rayprep.base.errors import ErrorType
from rayprep.base.records import Record
from rayprep.sglang.gemm_shapes import GemmShape
from rayprep.stages.child.failures import ChildError
from rayprep.stages.child.lines import FailLine, StepLine

Mode = Literal["nvcc", "library", "share"]
"""How kernels come about: listed, then compiled side by side (`nvcc`); by several processes that each have the
library compile a share of the products (`library`); or by this one process, for such a share (`share`)."""


class Task(Record):
    """A product at some numbers of rows."""

    shape: GemmShape
    rows: tuple[int, ...] = Field(min_length=1)


class GemmRequest(Record):
    """What the child is to build."""

    mode: Mode
    tasks: tuple[Task, ...] = Field(min_length=1)
    cache: str
    """DeepGEMM's folder below the profiles root."""
    scratch: str
    """A folder of the child's own; in mode `nvcc` laid out by `prepare_listing`."""
    nvcc: str = ""
    """The real compiler; empty where NVRTC is used."""
    parallel: int = Field(default=1, ge=1)
    """Compilers, or processes, at a time."""


class KernelsLine(Record):
    """All is done and was looked at."""

    event: Literal["kernels"] = "kernels"
    used: tuple[str, ...]
    """Folders below DIR/cache that a start from this cache loads, sorted."""
    compiled: tuple[str, ...]
    """Those of them that are new."""


GemmLine = Annotated[StepLine | KernelsLine | FailLine, Field(discriminator="event")]
GEMM_LINE: TypeAdapter[StepLine | FailLine | KernelsLine] = TypeAdapter(GemmLine)
"""Parses one line of the child's standard output."""


class Unlisted(ChildError):
    """A product asked for a kernel that is not in the cache, after all that were listed had been compiled."""

    error_type = ErrorType.VERIFY_FAILED


class ShareFailed(ChildError):
    """A process that built a share gave up, and said why."""

    def __init__(self, line: FailLine) -> None:
        super().__init__(line.message)
        self.error_type = line.error_type


def shares(tasks: Sequence[Task], count: int) -> list[tuple[Task, ...]]:
    """`tasks` dealt to at most `count` processes, so that no two of them want the same kernel often.

    The tiles change fast while M is small and hardly when it is large, so a portion is one doubling of M.
    """
    portions = [part for task in tasks for part in _by_doubling(task)]
    dealt = [tuple(portions[i::count]) for i in range(count)]
    return [share for share in dealt if share]


def _by_doubling(task: Task) -> Iterator[Task]:
    for bits in sorted({m.bit_length() for m in task.rows}):
        yield Task(shape=task.shape, rows=tuple(m for m in task.rows if m.bit_length() == bits))
