"""A reset while others work: refused before it has begun, and nobody begins meanwhile."""

import os
import subprocess
import sys

import pytest

from rayprep.base.errors import HostUnfit, LockTimeout
from rayprep.host.environment import STORE_MARK
from rayprep.host.process import marked_processes
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.remove import preview, reset
from rayprep.store.reset.report import ResetReport
from tests.processes import wait_for
from tests.store.reset.caches import DEEP_GEMM, HOLD, Caches, holding


@pytest.mark.parametrize("slug", [None, "qwen", "never-seen"])
def test_refused_while_another_process_holds_a_lock(caches: Caches, slug: str | None) -> None:
    kernel = caches.kernel("kernel.a.0")
    caches.complete(DEEP_GEMM, "qwen", *kernel)
    lock = caches.layout.slug_lock(slug) if slug else caches.layout.store_lock
    with holding(lock) as holder:
        try:
            with pytest.raises(LockTimeout, match=rf"pid {holder.pid} on .*their-run"):
                caches.reset()
            assert any(str(lock) in warning for warning in preview(caches.layout, Filters(), "r").warnings)
        finally:
            holder.communicate()
    assert caches.there() == set(kernel)
    caches.reset()
    assert caches.there() == set()


def test_another_slugs_lock_is_in_nobodys_way(caches: Caches) -> None:
    caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))
    with holding(caches.layout.slug_lock("llama")) as holder:
        try:
            assert len(caches.reset(match_slug="qwen").removed) == 1
        finally:
            holder.communicate()


def test_nobody_else_gets_the_locks_meanwhile(caches: Caches) -> None:
    caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))
    seen = []

    def confirm(plan: ResetReport) -> bool:
        for lock in (caches.layout.slug_lock("qwen"), caches.layout.store_lock):
            done = subprocess.run(
                [sys.executable, "-c", HOLD, str(lock)], input="", capture_output=True, text=True, check=False
            )
            seen.append(f"pid {os.getpid()}" in done.stderr and "LockTimeout" in done.stderr)
        return True

    reset(caches.layout, Filters(), "r", lambda _: None, confirm)
    assert seen == [True, True]


def test_refused_while_a_dead_runs_compiler_still_works(caches: Caches) -> None:
    kernel = caches.kernel("kernel.a.0")
    env = {**os.environ, STORE_MARK: str(caches.layout.profiles)}
    with subprocess.Popen(["sleep", "60"], env=env) as compiler:
        try:
            # One that has just begun has no environment yet.
            wait_for(lambda: marked_processes(STORE_MARK, env[STORE_MARK]), "the compiler to have its mark")
            with pytest.raises(HostUnfit, match=f"process {compiler.pid} of a dead run"):
                caches.reset()
        finally:
            compiler.kill()
    assert caches.there() == set(kernel)
