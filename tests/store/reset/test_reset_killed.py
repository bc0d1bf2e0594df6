"""A reset that is killed: nothing half valid, at whichever step."""

import os
import shutil
import signal
import sys
from collections.abc import Callable

from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from tests.store.reset.caches import DEEP_GEMM, FLASHINFER, INDUCTOR, MODULES, Caches


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that gets SIGKILL just before its `step`th change of the file system."""
    child = os.fork()
    if child == 0:
        changes = iter(range(step, -1, -1))

        def hook(event: str, _: object) -> None:
            if event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir") and next(changes) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not go on as pytest
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_before_any_step_it_leaves_nothing_that_reads_as_valid(caches: Caches) -> None:
    top, kept = caches.layout.profiles, caches.layout.profiles.with_name("kept")
    modules = caches.module("norm") + caches.module("sampling")
    caches.complete(DEEP_GEMM, "a", *caches.kernel("kernel.a.0"), *caches.kernel("kernel.b.0"))
    caches.complete(FLASHINFER, "a", *modules)
    caches.complete(INDUCTOR, "a", caches.file("torchinductor/ab/cab.cpp"), caches.file("torchinductor/ab/cab.so"))
    half = caches.file("deep_gemm/cache/kernel.half.0/kernel.cu")
    marker = caches.mark("a", DEEP_GEMM)
    shutil.copytree(top, kept)
    step = 0
    while killed_at(step, caches.reset):
        there = caches.there()
        for stage in StageName:
            for each in read_completions(caches.layout, stage)[0]:
                assert each.artifacts.keys() <= there
                assert (
                    stage is not FLASHINFER
                    or {f"{MODULES}/{name}/build.ninja" for name in ("norm", "sampling")} <= there
                )
        for name in ("a", "b"):
            assert len([path for path in there if f"/kernel.{name}.0/" in path]) in (0, 2)
        assert half not in there or marker.exists()
        caches.reset()
        assert caches.there() == set()
        assert not (top / ".rayprep" / "scratch").exists()
        assert not list(top.rglob("*.gone"))
        shutil.rmtree(top)
        shutil.copytree(kept, top)
        step += 1
    assert step > 15
    assert caches.there() == set()
