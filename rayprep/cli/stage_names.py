"""Stages as they are named on the command line."""

import difflib

from rayprep.base.errors import BadRequest
from rayprep.model.stages import StageName

_ALIASES = {"moe": StageName.MOE_TUNE, "triton": StageName.MOE_TUNE, "deep-gemm": StageName.DEEP_GEMM}


def selection(
    deep_gemm: bool, moe: bool, flashinfer: bool, inductor: bool, serve: bool, everything: bool
) -> tuple[StageName, ...]:
    """The stages that flags name; empty means that none was named, which is all of them."""
    chosen = zip(StageName, (deep_gemm, moe, flashinfer, inductor, serve), strict=True)
    return tuple(StageName) if everything else tuple(stage for stage, given in chosen if given)


def stage_named(name: str) -> StageName:
    """A stage by its name or alias. Raises BadRequest with the nearest name."""
    known = {stage.value: stage for stage in StageName} | _ALIASES
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    raise BadRequest(
        f"unknown stage {name!r}", hint=f"did you mean {close[0]}?" if close else "stages: " + ", ".join(StageName)
    )
