"""The stages that need a GPU: rightly skipped where there is none, and refused by name where there is one."""

from collections.abc import Sequence

from rayprep.host.layout import Layout
from rayprep.host.scan import CacheScan
from rayprep.model.errors import ErrorType, StageError
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import StageName
from rayprep.stages.protocol import BuildContext, Built, StageRequest


class GpuOnlyStage:
    """A stage for which this version has no builder."""

    def __init__(self, name: StageName) -> None:
        self.name = name

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="its kernels are compiled for a GPU, and none is used here")
        return Unable(error_type=ErrorType.UNSUPPORTED, message=_no_builder(self.name))

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        raise StageError(ErrorType.UNSUPPORTED, _no_builder(self.name))

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        return suspects

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        own = scans[0]
        tally = Tally(count=own.file_count, bytes=own.size_bytes)
        return Artifacts(cache_dir=layout.located(layout.cache(own.cache)), files=tally)


def _no_builder(name: StageName) -> str:
    return f"{name} on a GPU host is not built by this version of rayprep"
