"""The GPUs of this host, as NVML tells them: no CUDA context, no torch."""

import ctypes
from dataclasses import dataclass

_CORES_PER_SM = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""FP32 lanes of one multiprocessor where it is not 128. Source: CUDA C++ Programming Guide, "Compute Capabilities",
arithmetic instructions. NVML has no call for the number of multiprocessors."""


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str
    compute_capability: str
    sm_count: int
    memory_bytes: int


@dataclass(frozen=True)
class GpuInventory:
    """`problem` says why GPUs that seem to be there cannot be read; it is null on a host without any."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    """The newest CUDA that the driver serves, `13.0`."""
    problem: str | None = None


def read_gpus() -> GpuInventory:
    """Asks NVML. A host without the NVIDIA driver has none; a driver that fails is a problem, not an absence."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the binding's own first step, without the time that importing it takes
    except OSError:
        return GpuInventory()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return GpuInventory()
    except pynvml.NVMLError as error:
        absent = (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_GPU_NOT_FOUND)
        return GpuInventory(problem=None if error.value in absent else f"NVML: {error}")
    try:
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        return GpuInventory(
            gpus=tuple(_read(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())),
            driver_version=pynvml.nvmlSystemGetDriverVersion(),
            cuda_version=f"{version // 1000}.{version % 1000 // 10}",
        )
    except pynvml.NVMLError as error:
        return GpuInventory(problem=f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()


def _read(handle: object) -> Gpu:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    cores = pynvml.nvmlDeviceGetNumGpuCores(handle)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"sm_{major}{minor}",
        sm_count=cores // _CORES_PER_SM.get((major, minor), 128),
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )
