"""How work is dealt to processes, and what an error of the child comes to."""

import errno
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.gemm import LINEAR, GemmShape, m_values
from rayprep.stages.compile_jobs import CompileError
from rayprep.stages.deep_gemm_protocol import GemmFailLine, ShareFailed, Task, Unlisted, failure, shares

SHAPES = [GemmShape(kind=LINEAR, n=64 * n, k=128) for n in (1, 2, 3)]


@given(st.integers(1, 40), st.integers(1, 3))
def test_every_product_is_dealt_once(count: int, shapes: int) -> None:
    tasks = [Task(shape=shape, rows=m_values(None)) for shape in SHAPES[:shapes]]
    dealt = shares(tasks, count)
    assert 1 <= len(dealt) <= count
    given_out = Counter((task.shape, m) for share in dealt for task in share for m in task.rows)
    assert given_out == Counter((task.shape, m) for task in tasks for m in task.rows)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CompileError("toolchain", "kernel.a.0", "headers"), "toolchain"),
        (Unlisted("a kernel"), "unlisted"),
        (ShareFailed(GemmFailLine(kind="nvrtc", message="x")), "nvrtc"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "no_space"),
        (ModuleNotFoundError("No module named 'deep_gemm'"), "toolchain"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out_of_memory"),
        (RuntimeError("NVRTC error (compiler.hpp:1): 6"), "nvrtc"),
        (RuntimeError("Found no NVIDIA driver on your system"), "toolchain"),
        (RuntimeError("Assertion error: NVCC version should be >= 12.3"), "toolchain"),
        (RuntimeError(), "compile_failed"),
    ],
    ids=repr,
)
def test_an_error_has_a_kind_and_one_line(error: Exception, kind: str) -> None:
    said = failure(error)
    assert said.kind == kind
    assert "\n" not in said.message
    assert said.message
