"""One thing that the tuner measures, and what came of it."""

import re
from collections.abc import Mapping

from pydantic import Field

from rayprep.base.records import Record
from rayprep.sglang.failure_signs import NO_SPACE
from rayprep.sglang.kernel_config import KernelConfig

_PASSING = re.compile(
    r"(?i:out.?of.?memory(?!error: out of resource))|(?<!OutOf)MemoryError|\[Errno \d+\]|Cannot allocate memory"
    rf"|Too many open files|can't start new thread|no answer within|{NO_SPACE}"
)
"""What a machine says that lacks something, or is too busy. A config that asks for more registers or shared memory than
a GPU has is out of "resource": that stays so."""


class Trial(Record):
    """One thing to measure. Without a config it is what SGLang would run by itself."""

    tokens: int = Field(gt=0)
    config: KernelConfig | None
    replays: int = Field(gt=0)


class Measurement(Record):
    """One line of a tuning's log."""

    trial: Trial
    us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Microseconds of one call of the layer: the median over the replays. None where it cannot run."""
    error: str | None = None
    cut: bool = False
    """It was so far behind that it was run once."""
    run: str = ""
    """Of the tuner."""
    gpu: str = ""
    """Its UUID. Two GPUs of a kind are not equally fast, and their times not comparable."""

    @property
    def may_pass(self) -> bool:
        """Whether it failed of what says nothing of the config."""
        return may_pass(self.error)


Done = Mapping[Trial, Measurement]


def may_pass(error: str | None) -> bool:
    return bool(_PASSING.search(error or ""))
