"""What a tuning is for: the model's shape and the numbers of tokens, each of which is one unit of work."""

import re
from collections.abc import Sequence

from rayprep.base.errors import ErrorType
from rayprep.model.plan import NotNeeded, Unable
from rayprep.model.signature import Signature
from rayprep.model.spec import PrepSpec
from rayprep.sglang.moe_shape import MoeShape, NoTritonKernel, UnknownKernel, default_batch_sizes, moe_shape
from rayprep.stages.moe_tune.search import Choice
from rayprep.stages.protocol import StageRequest


def shape_of(request: StageRequest) -> MoeShape | NotNeeded | Unable:
    """Raises BadRequest where the user asked for another type than the model's."""
    spec = request.spec
    shape = moe_shape(request.model.architecture, spec.tp, spec.server_args, spec.moe_dtype)
    if isinstance(shape, NoTritonKernel):
        return NotNeeded(reason=shape.reason, detail=shape.detail)
    if isinstance(shape, UnknownKernel):
        return Unable(error_type=ErrorType.UNSUPPORTED, message=shape.message)
    return shape


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
