"""This host's signature, read in a fraction of a second."""

import platform
from collections.abc import Mapping

from rayprep.base.errors import HostUnfit
from rayprep.host import toolchain
from rayprep.host.gpu import GpuInventory
from rayprep.host.layout import Layout
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice


def choose_device(choice: DeviceChoice, inventory: GpuInventory, tp: int) -> DeviceChoice:
    """`cuda` or `cpu`, never `auto`.

    Raises:
        HostUnfit: GPUs are asked for and there are none, too few, or they cannot be used.
    """
    if choice is DeviceChoice.CPU:
        return choice
    if inventory.problem:
        raise HostUnfit(
            f"the GPUs cannot be used: {inventory.problem}",
            hint="mend the driver or the setting, or give --device cpu to go on without GPUs",
        )
    count = len(inventory.gpus)
    if choice is DeviceChoice.CUDA and not count:
        raise HostUnfit("--device cuda: NVML shows no GPU on this host", hint="drop --device, or run `rayprep doctor`")
    if count and tp > count:
        raise HostUnfit(f"tp {tp} needs {tp} GPUs, this host has {count}", hint="choose a smaller --tp")
    return DeviceChoice.CUDA if count else DeviceChoice.CPU


def read_signature(
    layout: Layout, environ: Mapping[str, str], device: DeviceChoice, inventory: GpuInventory
) -> Signature:
    """This host as a builder of kernels for `device`, without slug and TP."""
    gpu = inventory.gpus[0] if inventory.gpus and device is DeviceChoice.CUDA else None
    torch_version = toolchain.package_version("torch")
    return Signature(
        device_name=gpu.name if gpu else "cpu",
        compute_capability=gpu.compute_capability if gpu else None,
        sm_count=gpu.sm_count if gpu else None,
        gpu_count=len(inventory.gpus) if gpu else 0,
        driver_version=inventory.driver_version,
        cpu_arch=platform.machine(),
        cpu_isa=toolchain.cpu_isa(),
        libc=toolchain.libc_version(),
        python=toolchain.python_minor(),
        cxx=toolchain.cxx_version(environ),
        cuda=toolchain.torch_cuda_version() if torch_version else inventory.cuda_version,
        nvcc=toolchain.nvcc_version(environ),
        torch_version=torch_version,
        triton_version=toolchain.package_version("triton"),
        transformers_version=toolchain.package_version("transformers"),
        flashinfer_version=toolchain.package_version("flashinfer-python"),
        deep_gemm_version=toolchain.package_version("sgl-deep-gemm"),
        sglang_version=toolchain.package_version("sglang"),
        sglang_commit=toolchain.package_commit("sglang"),
        install_prefix=toolchain.install_prefix(),
        profiles_root=str(layout.profiles),
    )
