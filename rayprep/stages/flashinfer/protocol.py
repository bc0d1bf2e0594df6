"""What the `flashinfer` stage and its child say to each other, and what a failed compile means.

The parent writes one `ModulesRequest` to a file; the child answers as `child.lines` says, in the end with one
`ModulesLine`. No torch and no flashinfer here.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rayprep.base.records import AbsolutePath, Record
from rayprep.sglang.flashinfer_modules import FlashInferModule
from rayprep.stages.child.lines import FailLine, StepLine


class ModuleDone(Record):
    """One module."""

    unit: str
    name: str
    """FlashInfer's own name of the module, which is its folder's too."""
    seconds: float
    compiled: bool
    """There was work to do; in a check, there would be."""
    folder: str | None
    """Where it was built, below the workspace, POSIX. Null for a module that was installed compiled."""
    beside: tuple[str, ...] = ()
    """Names of modules whose sources are written whenever this one is loaded, and which are compiled only on demand."""


class ModulesLine(Record):
    """All modules are done."""

    event: Literal["modules"] = "modules"
    modules: tuple[ModuleDone, ...]


class ModulesRequest(Record):
    """What the child is to build, or to check: `modules` in mode `build`, `built` in mode `check`."""

    mode: Literal["build", "check"]
    workspace: AbsolutePath
    """The same as the child's FLASHINFER_WORKSPACE_BASE."""
    modules: tuple[FlashInferModule, ...] = ()
    built: tuple[ModuleDone, ...] = ()


ChildLine = Annotated[StepLine | ModulesLine | FailLine, Field(discriminator="event")]
CHILD_LINE: TypeAdapter[StepLine | FailLine | ModulesLine] = TypeAdapter(ChildLine)
"""Parses one line of the child's standard output."""
