"""What the parent of the compiling child reckons with, and how a failure is told."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from rayprep.base.errors import ErrorType  # noqa: E402
from rayprep.sglang.architecture import Architecture, Quantization  # noqa: E402
from rayprep.stages.child.failures import failure  # noqa: E402
from rayprep.stages.inductor.decode_step import Random  # noqa: E402
from rayprep.stages.inductor.protocol import (  # noqa: E402
    DecodeRequest,
    Mismatch,
    memory_bytes,
    rank_shape,
    unit_name,
    weight_bytes,
)
from tests.stages.inductor.decoding import DENSE, MOE, request  # noqa: E402

pytestmark = pytest.mark.torch


def size(tree: object) -> int:
    """Bytes of all its tensors."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def test_a_rank_has_its_share_of_heads_and_widths_and_at_least_one_head() -> None:
    big = DENSE.model_copy(update={"num_attention_heads": 32, "num_key_value_heads": 4, "num_hidden_layers": 48})
    shape = rank_shape(big, 8)
    assert (shape.heads, shape.kv_heads, shape.intermediate, shape.layers) == (4, 1, 96, 2)
    moe = rank_shape(MOE.model_copy(update={"num_experts": 128, "num_experts_per_tok": 12}), 2)
    assert (moe.experts, moe.top_k, moe.intermediate) == (8, 8, 64)
    mixtral = MOE.model_copy(update={"moe_intermediate_size": None})
    assert rank_shape(mixtral, 1).intermediate == MOE.intermediate_size


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("bfloat16", "bf16"), ("torch.float16", "fp16"), ("float32", "fp32"), ("float8_e4m3fn", "bf16")],
)
def test_a_unit_is_named_after_what_makes_its_graph(dtype: str, name: str) -> None:
    architecture = DENSE.model_copy(update={"dtype": dtype})
    assert unit_name(architecture, 1, 8, 512, "cpu") == f"decode:cpu:{name}:l2:b8:s512"


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_reckoned_bytes_are_those_of_the_tensors(architecture: Architecture, dtype: str) -> None:
    architecture = architecture.model_copy(update={"dtype": dtype})
    random = Random(rank_shape(architecture, 2), "cpu", 0)
    weights = size(random.weights())
    assert weight_bytes(architecture, 2) == weights
    caches = size(random.step_input(4, 1024).caches)
    reckoned = memory_bytes(architecture, 2, (1, 4), 1024)
    assert weights + 2 * caches < reckoned < 2 * (weights + 2 * caches)


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    quantized = MOE.model_copy(update={"quantization": Quantization(weight_block_size=(128, 128))})
    sent = request("build", tmp_path, quantized)
    assert DecodeRequest.model_validate_json(sent.model_dump_json()) == sent


def chained(inner: BaseException) -> BaseException:
    """As Dynamo raises it: the compiler's error from inside its own."""
    try:
        try:
            raise inner
        except BaseException as error:
            raise RuntimeError("backend='inductor' raised:") from error
    except RuntimeError as outer:
        return outer


FULL, MEMORY, TOOLCHAIN = ErrorType.INSUFFICIENT_DISK, ErrorType.OOM_DURING_WARMUP, ErrorType.TOOLCHAIN_MISMATCH


@pytest.mark.parametrize(
    ("error", "error_type", "said"),
    [
        (OSError(28, "No space left on device"), FULL, "No space left"),
        (
            CppCompileError(["g++"], "a.cpp:1: note: x\nfatal error: No space left on device"),
            FULL,
            "fatal",
        ),
        (
            CppCompileError(["g++"], "g++: fatal error: Killed signal terminated program cc1plus"),
            MEMORY,
            "K",
        ),
        (CppCompileError(["g++"], "warning: x\na.cpp:3:1: error: 'y' was not declared"), "compile_failed", "'y'"),
        (
            CppCompileError(["g++"], "fatal error: Python.h: No such file or directory"),
            TOOLCHAIN,
            "Python.h",
        ),
        (InvalidCxxCompiler(), TOOLCHAIN, "No working C++ compiler"),
        (PermissionError(13, "Permission denied", "g++"), TOOLCHAIN, "Permission denied"),
        (PermissionError(13, "Permission denied", "/cache/x"), "compile_failed", "Permission denied"),
        (ModuleNotFoundError("No module named 'torch'"), TOOLCHAIN, "torch"),
        (ImportError("/cache/x.main.so: file too short"), "compile_failed", "too short"),
        (MemoryError("no more"), MEMORY, "no more"),
        (torch.OutOfMemoryError("CUDA out of memory."), MEMORY, "CUDA"),
        (Mismatch("off by 1"), "compile_failed", "off by 1"),
    ],
)
def test_a_failure_is_told_by_its_root_in_one_line(error: BaseException, error_type: str, said: str) -> None:
    line = failure(chained(error))
    assert line.error_type == error_type
    assert said in line.message
    assert "\n" not in line.message
    assert "raised" not in line.message


def test_an_allocation_that_torch_refuses_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert failure(caught.value).error_type == MEMORY
