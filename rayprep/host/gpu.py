"""The GPUs of this host, as NVML tells them: no CUDA context, no torch."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    index: int = 0
    """As NVML and, with CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA number it."""


@dataclass(frozen=True)
class GpuInventory:
    """`problem` says why GPUs that seem to be there cannot be read or used; it is null on a host without any."""

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
            gpus=tuple(_read(i) for i in range(pynvml.nvmlDeviceGetCount())),
            driver_version=pynvml.nvmlSystemGetDriverVersion(),
            cuda_version=f"{version // 1000}.{version % 1000 // 10}",
        )
    except pynvml.NVMLError as error:
        return GpuInventory(problem=f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()


def _read(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    cores = pynvml.nvmlDeviceGetNumGpuCores(handle)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"sm_{major}{minor}",
        sm_count=cores // _CORES_PER_SM.get((major, minor), 128),
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        index=index,
    )


_NO_DEVICE = frozenset({"", "-1", "NoDevFiles"})
"""How a user, CUDA's own tools and Slurm say that no GPU is to be seen."""


def visible_gpus(inventory: GpuInventory, environ: Mapping[str, str]) -> GpuInventory:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; all where it is not set.

    One that is meant to name GPUs and under which CUDA would see none is a problem, not a host without GPUs.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None or not inventory.gpus:
        return inventory
    names = [name.strip() for name in setting.split(",")]
    chosen = _chosen(inventory.gpus, names)
    if chosen or names[0] in _NO_DEVICE:
        return replace(inventory, gpus=tuple(chosen))
    why = f"CUDA_VISIBLE_DEVICES={setting} shows CUDA no whole GPU of this host (MIG slices are not supported)"
    return replace(inventory, gpus=(), problem=why)


def _chosen(gpus: Sequence[Gpu], names: Sequence[str]) -> list[Gpu]:
    """As CUDA chooses: nothing that comes after a name it does not know, and nothing at all where one comes twice.

    Source of the latter: torch/cuda/__init__.py, `_parse_visible_devices`.
    """
    chosen: list[Gpu] = []
    for name in names:
        meant = [gpu for gpu in gpus if _is_named(gpu, name)]
        if len(meant) != 1:
            break
        chosen += meant
    return chosen if len(set(chosen)) == len(chosen) else []


def _is_named(gpu: Gpu, name: str) -> bool:
    """By its number, or by as much of its UUID as tells it from the others."""
    return name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))


def visible_env(gpus: Sequence[Gpu]) -> dict[str, str]:
    """What shows a child these GPUs alone; nothing where there are none."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in gpus)} if gpus else {}


@dataclass(frozen=True)
class GpuMemory:
    """How much of one GPU's memory is free, and which processes hold the rest. All in bytes."""

    uuid: str
    free_bytes: int
    used_bytes: int
    processes: tuple[tuple[int, int | None], ...] = ()
    """(pid, bytes) of each that has a CUDA context, as the host numbers them. A container may see none of them, or
    no sizes."""


def read_gpu_memory(uuids: Sequence[str]) -> tuple[GpuMemory, ...] | None:
    """The memory of the GPUs with these UUIDs, in their order. None where NVML is absent or cannot tell."""
    if not uuids:
        return None
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return tuple(_read_memory(uuid) for uuid in uuids)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _read_memory(uuid: str) -> GpuMemory:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        holders = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        holders = []  # not told to every container
    processes = tuple((holder.pid, holder.usedGpuMemory) for holder in holders)
    return GpuMemory(uuid, memory.free, memory.used, processes)
