"""Forecast of what would be built for a model on a kind of host that need not be at hand."""

from typing import Literal

from rayprep.base.records import Record
from rayprep.model.plan import ListedBy
from rayprep.model.stages import StageName


class StageForecast(Record):
    """One stage's part of it."""

    units: tuple[str, ...] = ()
    listed_by: ListedBy | None = None
    """Null where there is nothing to build, too."""
    reason: str | None = None
    """Why there is nothing."""
    detail: str = ""


class Forecast(Record):
    """All stages of one request."""

    model_slug: str
    model_source: str
    tp_size: int
    device_name: str
    compute_capability: str
    sglang_version: str
    """This host's, or where it has none the one that our tables were read in."""
    listed_by: Literal["sglang", "tables"]
    """Who was asked: the installed SGLang, or rayprep's tables."""
    warning: str | None = None
    """Why SGLang's word is not to be had, where it was asked."""
    experts: str | None
    """The shape that is tuned, `E=... N=... K=... topk=... dtype`; null where none is."""
    stages: dict[StageName, StageForecast]
