"""Unpacking that is killed at any moment: nothing half reads as valid, and the next one mends."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from tests.store.package.archives import (
    FLASHINFER,
    MODULES,
    archive,
    assert_nothing_half,
    at,
    finished,
    packable,
    take,
    there,
)

_EVENTS = frozenset({"os.rename", "os.remove", "os.utime"})


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Whether a process that does `work` was killed before the change to the file system of that number."""
    pid = os.fork()
    if pid == 0:
        left = moment

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in _EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("state", ["empty", "damaged", "shared"])
def test_killed_at_any_moment_it_leaves_nothing_half_and_the_next_one_mends(
    source: Layout, tmp_path: Path, state: str
) -> None:
    data = archive(source)
    moment = 0
    while True:
        target = at(tmp_path / str(moment))
        if state == "damaged":
            take(target, data)
            (target.profiles / "torchinductor/fxgraph/zz/key/graph").write_text("GRAPHS", encoding="utf-8")
            (target.profiles / f"{MODULES}/norm/norm.so").write_text("NORMS", encoding="utf-8")
        if state == "shared":
            finished(target, FLASHINFER, {f"{MODULES}/norm/mine.so": "mine"}, slug="llama")
        killed = killed_at(moment, lambda: take(target, data))  # noqa: B023 - called before the next round
        assert_nothing_half(target)
        take(target, data)
        left = there(target)
        if state == "shared":
            left = {path: found for path, found in left.items() if "llama" not in path and "mine.so" not in path}
        assert left == packable(source)
        assert_nothing_half(target)
        if not killed:
            break
        moment += 1
    assert moment > 15
