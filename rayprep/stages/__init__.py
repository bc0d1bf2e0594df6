"""The stages, behind one small protocol. Heavy libraries are imported only in the child processes that need them."""

from rayprep.model.plan import Work
from rayprep.model.stages import StageName
from rayprep.stages.deep_gemm.stage import DeepGemmStage
from rayprep.stages.flashinfer.stage import FlashInferStage
from rayprep.stages.inductor.stage import InductorStage
from rayprep.stages.moe_tune.stage import MoeTuneStage
from rayprep.stages.protocol import BuildContext, Built, Stage, StageRequest
from rayprep.stages.serve.stage import ServeStage


def _via_server(request: StageRequest, work: Work, context: BuildContext) -> Built:
    from rayprep.stages.deep_gemm.by_server import compile_via_server  # what runs a server is not imported to plan

    return compile_via_server(request, work, context)


BY_NAME: dict[StageName, Stage] = {
    StageName.DEEP_GEMM: DeepGemmStage(via_server=_via_server),
    StageName.MOE_TUNE: MoeTuneStage(),
    StageName.FLASHINFER: FlashInferStage(),
    StageName.INDUCTOR: InductorStage(),
    StageName.SERVE: ServeStage(),
}

__all__ = ["BY_NAME", "BuildContext", "Built", "Stage", "StageRequest"]
