"""The slices of a host: the GPUs of one server each, as many as its TP, so that several servers run at once. Pure."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from rayprep.base.errors import HostUnfit

ALL: Literal["all"] = "all"
Asked = int | Literal["all"]
"""How many slices: a number, or as many as the host has."""
Each = TypeVar("Each")


def count_slices(asked: Asked, tp: int, gpus: int) -> int:
    """How many servers of `tp` GPUs run at once on a host with `gpus`, one at least.

    Raises:
        HostUnfit: the host has fewer.
    """
    fit = gpus // tp
    if asked == ALL:
        return max(1, fit)
    if asked > 1 and asked > fit:
        raise HostUnfit(
            f"{asked} slices at tp {tp} need {asked * tp} GPUs, this host has {gpus}",
            hint="choose fewer --slices, or all",
        )
    return asked


def deal(gpus: Sequence[Each], tp: int, count: int) -> tuple[tuple[Each, ...], ...]:
    """`count` slices of `tp` neighbours each, in order; what is left over is nobody's. None has a GPU on the CPU."""
    return tuple(tuple(gpus[index * tp : (index + 1) * tp]) for index in range(count))
