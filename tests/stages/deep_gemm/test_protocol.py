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


def _command_failed(output: str) -> RuntimeError:
    """As DeepGEMM 0.2 raises it."""
    said = "Assertion error (command.hpp:35): exit_code == 0: command failed with exit code 1:\ncd /t && nvcc k.cu"
    return RuntimeError(f"{said}\n{output}\nC++ trace (most recent call first):\n  #0 _C.so+0x1 f at error.cc:1")


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
        (
            RuntimeError("Assertion error (b.hpp:1): major > 12: NVCC version must be at least 12.9"),
            "toolchain_mismatch",
        ),
        (_command_failed("sh: 1: nvcc: not found"), "toolchain_mismatch"),
        (_command_failed("k.cu(3): error: this is wrong"), "compile_failed"),
        (RuntimeError(), "compile_failed"),
    ],
    ids=repr,
)
def test_an_error_has_a_type_and_one_line(error: Exception, error_type: str) -> None:
    said = failure(error)
    assert said.error_type == error_type
    assert "\n" not in said.message
    assert said.message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("k.cu(1): warning: x\nk.cu(3): error: this is wrong", "k.cu(3): error: this is wrong"),
        ("Killed", "Killed"),
        ("", "RuntimeError: Assertion error (command.hpp:35): exit_code == 0: command failed with exit code 1:"),
    ],
)
def test_what_the_compiler_said_is_told(output: str, message: str) -> None:
    assert failure(_command_failed(output)).message == message
