"""The driver and the GPUs, from facts: what is there, what serves whom, and what is in use."""

from pathlib import Path

import pytest

from rayprep.doctor import gpu_checks
from rayprep.doctor.findings import State
from rayprep.doctor.gpu_checks import GpuUse, judge_driver, judge_gpus, judge_use
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.model.spec import DeviceChoice
from tests.doctor.words import FAIL, GIB, OK, WARN


def gpu(name: str = "NVIDIA H200", sms: int = 132) -> Gpu:
    return Gpu(uuid="GPU-1", name=name, compute_capability="sm_90", sm_count=sms, memory_bytes=141 * GIB)


class TestGpus:
    @pytest.mark.parametrize(
        ("device", "inventory", "on_the_bus", "state", "words"),
        [
            ("auto", GpuInventory(), 0, OK, "no GPU, the CPU stage only"),
            ("cpu", GpuInventory(), 4, OK, "no GPU, the CPU stage only"),
            ("cuda", GpuInventory(), 0, FAIL, "NVML shows no GPU"),
            ("auto", GpuInventory(), 4, WARN, "4 NVIDIA devices are on the PCI bus"),
            ("auto", GpuInventory(problem="NVML: Unknown Error"), 0, FAIL, "cannot be read: NVML: Unknown Error"),
            ("cpu", GpuInventory(problem="NVML: Unknown Error"), 0, WARN, "cannot be read: NVML: Unknown Error"),
            ("auto", GpuInventory((gpu(), gpu())), 0, OK, "2 x NVIDIA H200 (sm_90, 132 SMs), 141.0 GiB each"),
            ("auto", GpuInventory((gpu(), gpu("NVIDIA H100"))), 0, FAIL, "GPUs of 2 kinds"),
            ("auto", GpuInventory((gpu(), gpu(sms=114))), 0, FAIL, "1 x NVIDIA H200 (sm_90, 114 SMs)"),
        ],
    )
    def test_what_is_there(
        self, device: str, inventory: GpuInventory, on_the_bus: int, state: State, words: str
    ) -> None:
        finding = judge_gpus(DeviceChoice(device), inventory, on_the_bus)
        assert finding.state is state
        assert words in finding.message

    @pytest.mark.parametrize(
        ("serves", "torch", "state"),
        [
            ("13.0", "13.0", OK),
            ("13.2", "12.8", OK),
            ("12.4", "12.8", OK),
            ("12.9", "13.0", FAIL),
            ("9.2", "13.0", FAIL),
            ("13.0", None, OK),
        ],
    )
    def test_a_driver_serves_its_own_major_version_and_older_ones(
        self, serves: str, torch: str | None, state: State
    ) -> None:
        assert judge_driver("580.1", serves, torch).state is state

    def test_a_busy_or_broken_gpu_is_named(self) -> None:
        idle, busy, broken = GpuUse(0, GIB, 0, 0), GpuUse(3, 70 * GIB, 2, 0), GpuUse(5, 0, 0, 7)
        assert [finding.state for finding in judge_use([idle])] == [OK, OK]
        use, memory = judge_use([idle, busy, broken])
        assert (use.state, use.message) == (WARN, "GPU 3: 70.0 GiB in use by 2 processes")
        assert (memory.state, memory.message) == (WARN, "uncorrected ECC errors: GPU 5: 7")

    def test_a_gpu_that_counts_no_errors_is_not_said_to_have_none(self) -> None:
        assert judge_use([GpuUse(0, 0, 0, None)])[1].message == "ECC errors are not counted here"

    def test_devices_on_the_bus(self, tmp_path: Path) -> None:
        for name, vendor, kind in (
            ("0", "0x10de", "0x030200"),
            ("1", "0x10de", "0x040300"),
            ("2", "0x8086", "0x030000"),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "vendor").write_text(f"{vendor}\n")
            (tmp_path / name / "class").write_text(f"{kind}\n")
        assert gpu_checks.nvidia_devices_on_the_bus(tmp_path) == 1
        assert gpu_checks.nvidia_devices_on_the_bus(tmp_path / "absent") == 0
