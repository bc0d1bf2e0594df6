"""All stages, by name, in the order in which they run."""

from rayprep.model.stages import StageName
from rayprep.stages.deep_gemm.stage import DeepGemmStage
from rayprep.stages.flashinfer.stage import FlashInferStage
from rayprep.stages.inductor.stage import InductorStage
from rayprep.stages.moe_tune.stage import MoeTuneStage
from rayprep.stages.protocol import Stage
from rayprep.stages.serve.stage import ServeStage

BY_NAME: dict[StageName, Stage] = {
    StageName.DEEP_GEMM: DeepGemmStage(),
    StageName.MOE_TUNE: MoeTuneStage(),
    StageName.FLASHINFER: FlashInferStage(),
    StageName.INDUCTOR: InductorStage(),
    StageName.SERVE: ServeStage(),
}
