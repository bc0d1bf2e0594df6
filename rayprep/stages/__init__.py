"""The stages, behind one small protocol. Heavy libraries are imported only in the child processes that need them."""

from rayprep.model.stages import StageName
from rayprep.stages.gpu_only import GpuOnlyStage
from rayprep.stages.inductor import InductorStage
from rayprep.stages.protocol import BuildContext, Built, Stage, StageRequest

BY_NAME: dict[StageName, Stage] = {
    StageName.DEEP_GEMM: GpuOnlyStage(StageName.DEEP_GEMM),
    StageName.MOE_TUNE: GpuOnlyStage(StageName.MOE_TUNE),
    StageName.FLASHINFER: GpuOnlyStage(StageName.FLASHINFER),
    StageName.INDUCTOR: InductorStage(),
}

__all__ = ["BY_NAME", "BuildContext", "Built", "Stage", "StageRequest"]
