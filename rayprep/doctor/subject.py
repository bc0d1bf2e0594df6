"""What every check is given, and what every area of checks offers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rayprep.doctor.findings import Finding
from rayprep.host.gpu import GpuInventory
from rayprep.host.layout import Layout
from rayprep.model.spec import DeviceChoice


@dataclass(frozen=True)
class Subject:
    """The host, and what is to be done on it."""

    layout: Layout
    environ: Mapping[str, str]
    device: DeviceChoice
    gpus: GpuInventory

    @property
    def wants_gpu(self) -> bool:
        """Whether the GPU stages would run here. GPUs that cannot be read are there all the same."""
        if self.device is DeviceChoice.AUTO:
            return bool(self.gpus.gpus or self.gpus.problem)
        return self.device is DeviceChoice.CUDA


Check = Callable[[Subject], Iterable[Finding]]

Checks = Mapping[str, Check]
"""The checks of one area, by the name to blame when one of them cannot be carried out."""
