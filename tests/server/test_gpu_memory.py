"""The memory of the GPUs of this host, whatever it has."""

import pytest

from rayprep.host.gpu import GpuMemory, read_gpu_memory, read_gpus
from rayprep.server.gpu_memory import ServerMemory, held


def test_where_nobody_can_tell_nothing_is_short_or_missing() -> None:
    assert read_gpu_memory(()) is None
    assert read_gpu_memory(("GPU-00000000-0000-0000-0000-000000000000",)) is None, "no such GPU anywhere"
    memory = ServerMemory(())
    assert not memory.is_short()
    assert memory.held_by_others() == ""
    assert memory.is_returned(5, 1, pytest.fail) is None


def test_a_gpus_memory_is_whole() -> None:
    gpus = read_gpus().gpus
    found = read_gpu_memory([gpu.uuid for gpu in gpus]) or ()
    assert [memory.uuid for memory in found] == [gpu.uuid for gpu in gpus]
    for gpu, memory in zip(gpus, found, strict=True):
        assert 0 < memory.free_bytes <= gpu.memory_bytes
        assert 0 <= memory.used_bytes <= gpu.memory_bytes


def test_others_are_named_with_what_they_hold() -> None:
    gpu = GpuMemory("GPU-1", free_bytes=1 << 30, used_bytes=93 << 30, processes=((7, 92 << 30), (8, None)))
    assert held(gpu) == "other processes held 93.0 GiB of GPU-1 (pid 7 92.0 GiB, pid 8)"
    assert held(GpuMemory("GPU-1", 0, 1 << 30)) == "other processes held 1.0 GiB of GPU-1"
