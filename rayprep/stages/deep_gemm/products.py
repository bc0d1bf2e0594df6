"""Matrix products that DeepGEMM is to run, as SGLang's own warm-up loop runs them. For a child process alone.

Source: the executors in sglang 0.5.16, `srt/layers/deep_gemm_wrapper/compile_utils.py`.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from rayprep.host.toolchain import package_version
from rayprep.sglang.gemm_shapes import GemmShape, fitting
from rayprep.stages.deep_gemm.protocol import Task

if TYPE_CHECKING:
    from torch import Tensor

    Operand = Tensor | tuple[Tensor, Tensor]

_BLOCK = 128
"""Elements under one scale."""


def run_task(task: Task, judge: Callable[[RuntimeError], None]) -> None:
    """Runs a product at all of its numbers of rows that fit into the GPU's memory, on GPU 0.

    Args:
        judge: raises what DeepGEMM's error comes to, or returns to have the next number of rows run.
    """
    deep_gemm = importlib.import_module("deep_gemm")
    import torch

    alignment = deep_gemm.get_mk_alignment_for_contiguous_layout()
    # The rest is for the scales, and for what the allocator rounds up.
    budget = torch.cuda.mem_get_info()[0] * 9 // 10
    rows = fitting(task.shape, task.rows, alignment, budget, package_version("sglang"))
    if not rows:
        return
    run = _product(task.shape, max(rows))
    for m in rows:
        try:
            run(m)
        except RuntimeError as error:
            judge(error)
    torch.cuda.synchronize()
    del run
    torch.cuda.empty_cache()


def _product(shape: GemmShape, largest: int) -> Callable[[int], None]:
    """What runs the product at M rows, for M up to `largest`, on whatever the memory holds."""
    import torch

    deep_gemm = importlib.import_module("deep_gemm")
    grouped = (shape.groups,) if shape.is_masked or shape.is_contiguous else ()
    per_group = grouped if shape.is_masked else ()
    left = _operand((*per_group, largest, shape.k), shape, blocks=1)
    right = _operand((*grouped, shape.n, shape.k), shape, blocks=_BLOCK)
    result = torch.float32 if shape.is_float32 else torch.bfloat16
    out = torch.empty((*per_group, largest, shape.n), device="cuda", dtype=result)
    if shape.is_masked:
        masked = deep_gemm.fp8_m_grouped_gemm_nt_masked if shape.is_fp8 else deep_gemm.m_grouped_bf16_gemm_nt_masked
        mask = torch.zeros((shape.groups,), device="cuda", dtype=torch.int32)
        return lambda m: masked(left, right, out, masked_m=mask, expected_m=m)
    if shape.is_contiguous:
        grouped_gemm = getattr(deep_gemm, f"m_grouped_{'fp8' if shape.is_fp8 else 'bf16'}_gemm_nt_contiguous")
        group_of_row = torch.zeros((largest,), device="cuda", dtype=torch.int32)
        return lambda m: grouped_gemm(_first(left, m), right, out[:m], group_of_row[:m])
    gemm = deep_gemm.fp8_gemm_nt if shape.is_fp8 else deep_gemm.bf16_gemm_nt
    return lambda m: gemm(_first(left, m), right, out[:m])


def _operand(size: tuple[int, ...], shape: GemmShape, blocks: int) -> "Operand":
    """A matrix [..., R, K]; in FP8 with its scales [..., R / blocks, K / 128]."""
    import torch

    if not shape.is_fp8:
        return torch.empty(size, device="cuda", dtype=torch.bfloat16)
    *outer, rows, width = size
    scales = (*outer, -(-rows // blocks), -(-width // _BLOCK))
    matrix = torch.empty(size, device="cuda", dtype=torch.float8_e4m3fn)
    return matrix, torch.ones(scales, device="cuda", dtype=torch.float32)


def _first(operand: "Operand", m: int) -> "Operand":
    return (operand[0][:m], operand[1][:m]) if isinstance(operand, tuple) else operand[:m]
