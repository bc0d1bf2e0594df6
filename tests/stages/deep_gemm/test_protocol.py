"""How work is dealt to processes, and what an error of the child comes to."""

import errno
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import ErrorType
from rayprep.sglang.gemm_shapes import LINEAR, GemmShape, m_values
from rayprep.stages.child.failures import failure
from rayprep.stages.child.lines import FailLine
from rayprep.stages.deep_gemm.compile_jobs import CompileError
from rayprep.stages.deep_gemm.protocol import ShareFailed, Task, Unlisted, shares

SHAPES = [GemmShape(kind=LINEAR, n=64 * n, k=128) for n in (1, 2, 3)]


@given(st.integers(1, 40), st.integers(1, 3))
def test_every_product_is_dealt_once(count: int, shapes: int) -> None:
    tasks = [Task(shape=shape, rows=m_values(16384)) for shape in SHAPES[:shapes]]
    dealt = shares(tasks, count)
    assert 1 <= len(dealt) <= count
    given_out = Counter((task.shape, m) for share in dealt for task in share for m in task.rows)
    assert given_out == Counter((task.shape, m) for task in tasks for m in task.rows)


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (CompileError(ErrorType.TOOLCHAIN_MISMATCH, "kernel.a.0", "headers"), "toolchain_mismatch"),
        (Unlisted("a kernel"), "verify_failed"),
        (ShareFailed(FailLine(error_type=ErrorType.NVRTC_COMPILE_FAILED, message="x")), "nvrtc_compile_failed"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "insufficient_disk"),
        (ModuleNotFoundError("No module named 'deep_gemm'"), "toolchain_mismatch"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "oom_during_warmup"),
        (RuntimeError("NVRTC error (compiler.hpp:1): 6"), "nvrtc_compile_failed"),
        (RuntimeError("Found no NVIDIA driver on your system"), "toolchain_mismatch"),
        (RuntimeError("Assertion error: NVCC version should be >= 12.3"), "toolchain_mismatch"),
        (RuntimeError(), "compile_failed"),
    ],
    ids=repr,
)
def test_an_error_has_a_type_and_one_line(error: Exception, error_type: str) -> None:
    said = failure(error)
    assert said.error_type == error_type
    assert "\n" not in said.message
    assert said.message
