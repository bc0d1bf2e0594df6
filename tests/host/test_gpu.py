"""The GPUs of this host, whatever it has."""

import ctypes
import re

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.host.gpu import Gpu, GpuInventory, read_gpus, visible_gpus
from rayprep.host.this_host import choose_device
from rayprep.model.spec import DeviceChoice


def nvml_is_here() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(nvml_is_here(), reason="this host has the NVIDIA driver")
def test_a_host_without_nvidia_has_no_gpus_and_no_problem() -> None:
    assert read_gpus() == GpuInventory(gpus=(), driver_version=None, cuda_version=None, problem=None)


def test_asking_twice_gives_the_same() -> None:
    assert read_gpus() == read_gpus()


def test_whatever_is_found_is_whole() -> None:
    found = read_gpus()
    assert len({gpu.uuid for gpu in found.gpus}) == len(found.gpus)
    for gpu in found.gpus:
        assert re.fullmatch(r"(GPU|MIG)-[0-9a-f-]+", gpu.uuid)
        assert re.fullmatch(r"sm_\d+", gpu.compute_capability)
        assert gpu.name.strip()
        assert gpu.sm_count > 0
        assert gpu.memory_bytes > 1 << 30
    if found.gpus:
        assert found.problem is None
        assert re.fullmatch(r"\d+\.\d+", found.cuda_version or "")
        assert found.driver_version


GPUS = tuple(
    Gpu(uuid, "NVIDIA H200", "sm_90", 132, 141 << 30, i) for i, uuid in enumerate(("GPU-aa1", "GPU-aa2", "GPU-b7"))
)
HOST = GpuInventory(gpus=GPUS, driver_version="580.1", cuda_version="13.0")


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        ("1", [1]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-aa2", [1]),
        ("GPU-b7,0", [2, 0]),
        # CUDA takes the beginning of a UUID, where only one begins so.
        ("GPU-b", [2]),
        ("", []),
        ("-1", []),
        ("-1,0", []),
        ("NoDevFiles", []),
        # It stops at the first that it does not know.
        ("0,-1,1", [0]),
        ("0,MIG-1,2", [0]),
    ],
)
def test_only_what_cuda_shows_is_used(setting: str, seen: list[int]) -> None:
    got = visible_gpus(HOST, {"CUDA_VISIBLE_DEVICES": setting})
    assert [gpu.index for gpu in got.gpus] == seen
    assert (got.driver_version, got.cuda_version, got.problem) == ("580.1", "13.0", None)


@pytest.mark.parametrize("setting", ["3", "7,0", "MIG-1", "GPU-aa", "all", "0,0", "1,0,1", "GPU-b7,2"])
def test_a_setting_that_hides_what_it_names_is_no_host_without_gpus(setting: str) -> None:
    got = visible_gpus(HOST, {"CUDA_VISIBLE_DEVICES": setting})
    assert (got.gpus, got.driver_version) == ((), "580.1")
    assert f"CUDA_VISIBLE_DEVICES={setting} " in (got.problem or "")
    assert choose_device(DeviceChoice.CPU, got, 1) is DeviceChoice.CPU
    with pytest.raises(HostUnfit, match=f"={setting} .*MIG slices are not supported") as caught:
        choose_device(DeviceChoice.AUTO, got, 1)
    assert "--device cpu" in caught.value.hint


def test_without_a_setting_or_a_gpu_nothing_changes() -> None:
    assert visible_gpus(HOST, {}) == HOST
    broken = GpuInventory(problem="NVML: driver mismatch")
    assert visible_gpus(broken, {"CUDA_VISIBLE_DEVICES": "0"}) == broken
