"""In the tuner's compiling processes: compiles one kernel into the Triton cache, without a GPU.

What Triton would compile for a call is recorded by the process that has the GPU (`bench`), in Triton's own words;
its `preload` compiles from them. All that it asks of a GPU is the architecture, and which device is current.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from rayprep.stages.moe_tune.protocol import KernelJob


class NoGpu:
    """Stands for Triton's driver. Source: `JITFunction.create_binder` and `preload` in triton/runtime/jit.py (3.6)."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


@dataclass(frozen=True)
class CompileSetup:
    """Makes a process one that compiles for GPUs of a compute capability, 90 for sm_90."""

    capability: int

    def __call__(self) -> Callable[[KernelJob], None]:
        from triton.runtime.driver import driver

        driver.set_active(NoGpu(self.capability))
        return compile_kernel


def compile_kernel(job: KernelJob) -> None:
    """Raises whatever Triton raises."""
    kernel = getattr(importlib.import_module(job.module), job.name)
    if job.cache:
        import triton

        triton.knobs.cache.dir = job.cache
    try:
        kernel.preload(job.specialisation)
    finally:
        # Each kernel would be kept with all of its texts.
        kernel.device_caches[0][0].clear()
