"""A request's plan for a kind of GPU, whatever this host has and whatever lies in its caches."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rayprep.host.gpu import Gpu, GpuInventory, read_gpus, visible_gpus
from rayprep.host.means import read_means
from rayprep.host.model_files import find_model
from rayprep.host.rehearsal import read_facts
from rayprep.host.this_host import read_signature
from rayprep.model.forecast import Forecast, StageForecast
from rayprep.model.gpu_kinds import GpuKind
from rayprep.model.plan import StagePlan, Unable, Work
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice, check_against_model
from rayprep.model.stages import StageName
from rayprep.node.inventory import Asking, can_be_asked, warning_of
from rayprep.node.request import NodeRequest
from rayprep.sglang.inventory import Answer
from rayprep.sglang.moe_shape import MoeShape
from rayprep.sglang.releases import READ
from rayprep.stages.moe_tune.units import shape_of
from rayprep.stages.protocol import StageRequest
from rayprep.stages.table import BY_NAME

_TOOLS = ("torch_version", "triton_version", "flashinfer_version", "deep_gemm_version", "nvcc", "cxx")


def forecast(request: NodeRequest, kind: GpuKind, environ: Mapping[str, str]) -> Forecast:
    """Plan each stage as on a host with such GPUs that has every tool.

    The installed SGLang is asked where it is here together with such a GPU: it looks at the GPU that it finds.

    Raises:
        BadRequest: the model cannot be read, or does not go with the request.
    """
    spec = request.resolved.spec
    model = find_model(spec.model, environ)
    check_against_model(spec, model.architecture)
    here = read_signature(request.layout, environ, DeviceChoice.CPU, GpuInventory())
    if gpus := _gpus_here(kind, environ):
        kind = kind._replace(name=gpus[0].name)
    means = replace(read_means(environ, spec.moe_tuner_script), ninja=True)
    stages = StageRequest(spec=spec, model=model, device=DeviceChoice.CUDA, signature=_there(here, kind), means=means)
    answer = _answer(stages, gpus, environ, request.invocation)
    stages = replace(stages, answer=answer)
    shape = shape_of(stages)
    return Forecast(
        model_slug=model.slug,
        model_source=str(model.source),
        tp_size=spec.tp,
        device_name=kind.name,
        compute_capability=kind.capability,
        sglang_version=stages.signature.sglang_version or READ,
        listed_by=stages.listed_by,
        warning=warning_of(answer),
        experts=str(shape) if isinstance(shape, MoeShape) else None,
        stages={stage: _of_stage(BY_NAME[stage].plan(stages), stages) for stage in StageName},
    )


def _there(here: Signature, kind: GpuKind) -> Signature:
    """Such a host's signature: this one's versions, where it has the thing."""
    tools = {name: getattr(here, name) or "any" for name in _TOOLS}
    gpu = {"device_name": kind.name, "compute_capability": kind.capability}
    return here.model_copy(update={**tools, **gpu, "sglang_version": here.sglang_version or READ})


def _gpus_here(kind: GpuKind, environ: Mapping[str, str]) -> list[Gpu]:
    facts = read_facts(environ)
    seen = visible_gpus(facts.inventory if facts else read_gpus(), environ)
    return [gpu for gpu in seen.gpus if kind.is_met_by(gpu.name, gpu.compute_capability)]


def _answer(request: StageRequest, gpus: Sequence[Gpu], environ: Mapping[str, str], invocation: str) -> Answer | None:
    if not gpus or not can_be_asked():
        return None
    with tempfile.TemporaryDirectory(prefix="rayprep-forecast.") as folder:
        log = Path(folder) / "inventory.log"
        with Asking(request, gpus[: request.spec.tp], log, environ, invocation) as asking:
            return asking.finish()


def _of_stage(plan: StagePlan, request: StageRequest) -> StageForecast:
    if isinstance(plan, Work):
        detail = f"left to the server: {plan.left}" if plan.left else ""
        return StageForecast(units=plan.units, listed_by=plan.listed_by, detail=detail)
    if isinstance(plan, Unable):
        return StageForecast(units=plan.units, listed_by=request.listed_by, detail=plan.message)
    return StageForecast(reason=plan.reason, detail=plan.detail)
