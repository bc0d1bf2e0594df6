"""The GPUs of this host, whatever it has."""

import ctypes
import re

import pytest

from rayprep.host.gpu import GpuInventory, read_gpus


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
