"""The NVIDIA driver and the GPUs."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rayprep.base.human import gib
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject
from rayprep.host import toolchain
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.model.spec import DeviceChoice

_IDLE_BYTES = 2 << 30
"""What an idle GPU may show as used: the driver keeps some hundred MiB of each for itself."""

_CPU_HINT = "or give --device cpu to go on without GPUs"


def judge_gpus(device: DeviceChoice, inventory: GpuInventory, on_the_bus: int) -> Finding:
    """
    Args:
        on_the_bus: NVIDIA devices that the kernel sees where NVML shows none.
    """
    check = "GPUs"
    if inventory.problem:
        message = f"cannot be read: {inventory.problem}"
        bad = warn if device is DeviceChoice.CPU else fail
        return bad(check, message, f"mend the driver until nvidia-smi runs, {_CPU_HINT}")
    if inventory.gpus:
        return _judge_kinds(check, inventory.gpus)
    if device is DeviceChoice.CUDA:
        return fail(check, "--device cuda, and NVML shows no GPU", "install the driver, or drop --device cuda")
    if device is DeviceChoice.AUTO and on_the_bus:
        seen = f"NVML shows none, but {on_the_bus} NVIDIA devices are on the PCI bus"
        return warn(check, seen, f"install the driver, start the container with --gpus all, {_CPU_HINT}")
    return ok(check, "no GPU, the CPU stage only")


def _judge_kinds(check: str, gpus: tuple[Gpu, ...]) -> Finding:
    kinds = Counter((gpu.name, gpu.compute_capability, gpu.sm_count) for gpu in gpus)
    found = ", ".join(f"{count} x {name} ({arch}, {sms} SMs)" for (name, arch, sms), count in kinds.items())
    if len(kinds) > 1:
        remedy = "give the container GPUs of one kind only: kernels are built for one, and the signature names one"
        return fail(check, f"GPUs of {len(kinds)} kinds: {found}", remedy)
    return ok(check, f"{found}, {gib(min(gpu.memory_bytes for gpu in gpus))} each")


def judge_driver(driver: str | None, serves: str | None, torch_cuda: str | None) -> Finding:
    """A driver runs everything of its own CUDA major version, and of older ones.

    Source: NVIDIA, "CUDA Compatibility", minor version compatibility.
    """
    check = "NVIDIA driver"
    found = f"{driver or 'version unknown'}, serves CUDA {serves or 'unknown'}"
    if torch_cuda is None:
        return ok(check, found)
    if serves and _major(serves) < _major(torch_cuda):
        remedy = f"install a driver that serves CUDA {_major(torch_cuda)}, or a torch that is built for {serves}"
        return fail(check, f"{found}, too old for torch's CUDA {torch_cuda}", remedy)
    return ok(check, f"{found}; torch is built for {torch_cuda}")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


@dataclass(frozen=True)
class GpuUse:
    """What is going on on one GPU right now."""

    index: int
    used_bytes: int
    processes: int
    uncorrected_errors: int | None
    """Since the driver was loaded; null where the GPU does not count them."""


def judge_use(uses: list[GpuUse]) -> list[Finding]:
    busy = [use for use in uses if use.processes or use.used_bytes > _IDLE_BYTES]
    broken = [use for use in uses if use.uncorrected_errors]
    return [_judge_busy(busy), _judge_memory(broken, uses)]


def _judge_busy(busy: list[GpuUse]) -> Finding:
    if not busy:
        return ok("GPU use", "idle")
    who = ", ".join(f"GPU {use.index}: {gib(use.used_bytes)} in use by {use.processes} processes" for use in busy)
    return warn("GPU use", who, "end what runs there (nvidia-smi names it), or lower --mem-fraction")


def _judge_memory(broken: list[GpuUse], uses: list[GpuUse]) -> Finding:
    if broken:
        where = ", ".join(f"GPU {use.index}: {use.uncorrected_errors}" for use in broken)
        return warn("GPU memory", f"uncorrected ECC errors: {where}", "do not measure there; have the GPU looked at")
    uncounted = all(use.uncorrected_errors is None for use in uses)
    return ok("GPU memory", "ECC errors are not counted here" if uncounted else "no uncorrected ECC error")


def nvidia_devices_on_the_bus(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """Display and 3D controllers of vendor 0x10de; none where the kernel shows no PCI bus."""
    found = 0
    for device in devices.glob("*"):
        vendor = (device / "vendor").read_text(encoding="ascii").strip()
        kind = (device / "class").read_text(encoding="ascii").strip()
        found += vendor == "0x10de" and kind.startswith("0x03")
    return found


def _read_use() -> list[GpuUse]:
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            GpuUse(
                index=index,
                used_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).used,
                processes=len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
                uncorrected_errors=_uncorrected_errors(handle),
            )
            for index, handle in enumerate(handles)
        ]
    finally:
        pynvml.nvmlShutdown()


def _uncorrected_errors(handle: object) -> int | None:
    import pynvml

    try:
        return int(
            pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
    except pynvml.NVMLError_NotSupported:
        return None


def _gpus(subject: Subject) -> list[Finding]:
    if subject.gpus.gpus or subject.gpus.problem:
        return [judge_gpus(subject.device, subject.gpus, on_the_bus=0)]
    return [judge_gpus(subject.device, subject.gpus, nvidia_devices_on_the_bus())]


def _driver(subject: Subject) -> list[Finding]:
    gpus = subject.gpus
    return [judge_driver(gpus.driver_version, gpus.cuda_version, toolchain.torch_cuda_version())] if gpus.gpus else []


def _use(subject: Subject) -> list[Finding]:
    import pynvml

    if not subject.gpus.gpus or not subject.wants_gpu:
        return []
    try:
        return judge_use(_read_use())
    except pynvml.NVMLError as error:
        return [warn("GPU use", f"cannot be read: NVML: {error}", "see what nvidia-smi says")]


CHECKS: Checks = {"GPUs": _gpus, "NVIDIA driver": _driver, "GPU use": _use}
