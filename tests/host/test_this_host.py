"""Which device a host gives, and its signature."""

import os
from pathlib import Path

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.host.layout import Layout
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice

AUTO, CUDA, CPU = DeviceChoice.AUTO, DeviceChoice.CUDA, DeviceChoice.CPU
LAYOUT = Layout(Path("/profiles"), Path("/telemetry"))


def gpus(count: int) -> GpuInventory:
    one = Gpu("GPU-0", "NVIDIA GH200 480GB", "sm_90", 132, 96 << 30)
    return GpuInventory(gpus=(one,) * count, driver_version="580.65.06", cuda_version="13.0")


NONE, BROKEN = GpuInventory(), GpuInventory(problem="NVML: Driver/library version mismatch")


@pytest.mark.parametrize(
    ("choice", "inventory", "tp", "device"),
    [
        (AUTO, NONE, 1, CPU),
        (AUTO, NONE, 8, CPU),
        (AUTO, gpus(1), 1, CUDA),
        (AUTO, gpus(8), 8, CUDA),
        (CUDA, gpus(2), 2, CUDA),
        (CPU, NONE, 1, CPU),
        (CPU, gpus(8), 1, CPU),
        (CPU, gpus(1), 8, CPU),
        (CPU, BROKEN, 1, CPU),
    ],
)
def test_the_device(choice: DeviceChoice, inventory: GpuInventory, tp: int, device: DeviceChoice) -> None:
    assert choose_device(choice, inventory, tp) is device


@pytest.mark.parametrize(
    ("choice", "inventory", "tp", "says"),
    [
        (CUDA, NONE, 1, "NVML shows no GPU"),
        (AUTO, gpus(1), 2, "tp 2 needs 2 GPUs, this host has 1"),
        (CUDA, gpus(4), 8, "tp 8 needs 8 GPUs, this host has 4"),
        (AUTO, BROKEN, 1, "version mismatch"),
        (CUDA, BROKEN, 1, "version mismatch"),
    ],
)
def test_a_host_that_cannot_is_unfit_with_a_hint(
    choice: DeviceChoice, inventory: GpuInventory, tp: int, says: str
) -> None:
    """GPUs that are there and cannot be read are never passed over for the CPU in silence."""
    with pytest.raises(HostUnfit, match=says) as caught:
        choose_device(choice, inventory, tp)
    assert caught.value.hint


def read(device: DeviceChoice, inventory: GpuInventory) -> Signature:
    return read_signature(LAYOUT, os.environ, device, inventory)


def test_the_signature_of_a_host_with_gpus() -> None:
    found = read(CUDA, gpus(4))
    assert (found.device_name, found.compute_capability, found.sm_count) == ("NVIDIA GH200 480GB", "sm_90", 132)
    assert (found.gpu_count, found.driver_version) == (4, "580.65.06")
    assert found.profiles_root == "/profiles"
    assert (found.model_slug, found.tp_size) == (None, None)


@pytest.mark.parametrize("inventory", [NONE, gpus(4)], ids=["no GPU", "GPUs left alone"])
def test_the_signature_of_a_host_as_a_cpu(inventory: GpuInventory) -> None:
    found = read(CPU, inventory)
    assert (found.device_name, found.compute_capability, found.sm_count, found.gpu_count) == ("cpu", None, None, 0)


def test_two_looks_at_one_host_are_equal() -> None:
    assert read(CPU, NONE) == read(CPU, NONE)
