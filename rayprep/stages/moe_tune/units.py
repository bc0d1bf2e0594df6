"""What a tuning is for: the model's shape and the numbers of tokens, each of which is one unit of work."""

import re
from collections.abc import Sequence

from rayprep.model.plan import NotNeeded
from rayprep.model.signature import Signature
from rayprep.model.spec import PrepSpec
from rayprep.sglang.architecture import WidthMissing
from rayprep.sglang.moe_shape import (
    MoeKernel,
    MoeShape,
    NoTritonKernel,
    UnknownKernel,
    default_batch_sizes,
    listed_moe_shape,
    moe_runner,
    moe_shape,
)
from rayprep.stages.moe_tune.search import Choice
from rayprep.stages.moe_tune.space import official_space
from rayprep.stages.protocol import StageRequest

_TRITON_UP_TO = 100
"""From this compute capability on, 100 for sm_100, SGLang runs experts through FlashInfer unless it is told not to."""


def shape_of(request: StageRequest) -> MoeShape | NotNeeded:
    """What is to be tuned, or why nothing is. Raises BadRequest where the user asked for another type."""
    if request.refused:
        return request.refused
    kernel = _kernel_of(request)
    if isinstance(kernel, NoTritonKernel):
        return NotNeeded(reason=kernel.reason, detail=kernel.detail)
    if isinstance(kernel, UnknownKernel):
        return NotNeeded(reason="unknown_moe_kernel", detail=f"not known: {kernel.message}")
    if not official_space(kernel):
        return NotNeeded(reason="no_tile", detail=f"no tile of SGLang's tuner divides the scaling block of {kernel}")
    return kernel


def _kernel_of(request: StageRequest) -> MoeKernel:
    spec = request.spec
    if request.inventory:
        return listed_moe_shape(request.inventory, spec.server_args, spec.moe_dtype)
    try:
        kernel = moe_shape(request.model.architecture, spec.tp, spec.server_args, spec.moe_dtype)
    except WidthMissing as missing:
        return UnknownKernel(message=str(missing))
    newer = capability_of(request.signature) >= _TRITON_UP_TO and moe_runner(spec.server_args) == "auto"
    if isinstance(kernel, MoeShape) and newer:
        where = request.signature.compute_capability
        return UnknownKernel(message=f"which MoE kernel SGLang chooses on {where}; say --moe-runner-backend=triton")
    return kernel


def sizes_of(spec: PrepSpec) -> tuple[int, ...]:
    """The numbers of tokens to tune for."""
    return spec.moe_batch_sizes or default_batch_sizes(spec.server_args)


def label_of(spec: PrepSpec) -> str:
    return "script" if spec.moe_tuner_script else spec.moe_strategy.value


def tuner_of(spec: PrepSpec) -> str:
    """Who makes the config file."""
    return spec.moe_tuner_script or "rayprep"


def unit_name(label: str, shape: MoeShape, tokens: int) -> str:
    return f"{label} {shape} M={tokens}"


def covered_units(spec: PrepSpec, shape: MoeShape, choices: Sequence[Choice]) -> tuple[str, ...]:
    """What finished searches cover. A script's are the sizes that it was asked for."""
    if spec.moe_tuner_script:
        return tuple(unit_name(label_of(spec), shape, size) for size in sizes_of(spec))
    return tuple(unit_name(each.value, shape, choice.tokens) for choice in choices for each in choice.strategies)


def capability_of(signature: Signature) -> int:
    """90 for sm_90; 0 where there is none."""
    return int(re.sub(r"\D", "", signature.compute_capability or "") or 0)
