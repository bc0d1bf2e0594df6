"""Processes that outlived their owner and its guard, found by the mark that all of a store's processes carry."""

import os

import psutil

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.host.environment import STORE_MARK, store_mark
from rayprep.host.layout import Layout
from rayprep.host.process import marked_processes


def leftovers(layout: Layout) -> list[psutil.Process]:
    """What still works in a store. For the holder of its lock, which proves that the owner is dead."""
    ours = {os.getpid(), os.getppid()}
    return [each for each in marked_processes(STORE_MARK, store_mark(layout)) if each.pid not in ours]


def refuse_leftovers(layout: Layout) -> None:
    """For who changes the store without building in it: compilers could write into what is being changed.

    Raises:
        HostUnfit: `cleanup_failed`, there are some.
    """
    for process in leftovers(layout):
        raise HostUnfit(
            f"process {process.pid} of a dead run still works in {layout.profiles}",
            hint="`rayprep ensure` ends it, or end it yourself",
            error_type=ErrorType.CLEANUP_FAILED,
        )
