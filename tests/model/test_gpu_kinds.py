"""GPUs by the names that people give them."""

import pytest

from rayprep.base.errors import BadRequest
from rayprep.model.gpu_kinds import gpu_kind


@pytest.mark.parametrize(
    ("text", "name", "capability"),
    [
        ("NVIDIA H200", "NVIDIA H200", "sm_90"),
        ("h200", "NVIDIA H200", "sm_90"),
        (" sm_90 ", "NVIDIA H200", "sm_90"),
        ("SM_121", "sm_121", "sm_121"),
        ("NVIDIA GH200 480GB", "NVIDIA GH200 480GB", "sm_90"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "sm_90"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "sm_80"),
        ("NVIDIA L40S", "NVIDIA L40S", "sm_89"),
        ("rtx 4090", "NVIDIA RTX 4090", "sm_89"),
        ("GB200", "NVIDIA GB200", "sm_100"),
        ("NVIDIA B300 SXM6 AC", "NVIDIA B300 SXM6 AC", "sm_103"),
    ],
)
def test_a_gpu_and_its_architecture(text: str, name: str, capability: str) -> None:
    found = gpu_kind(text)
    assert (found.name, found.capability) == (name, capability)


@pytest.mark.parametrize(
    ("wanted", "here", "met"),
    [
        ("H200", "NVIDIA H200", True),
        ("sm_90", "NVIDIA H200", True),
        ("sm_90", "NVIDIA GH200 480GB", True),
        ("GH200", "NVIDIA GH200 480GB", True),
        ("H20", "NVIDIA H200", False),
        ("H200", "NVIDIA GH200 480GB", False),
        ("NVIDIA GH200 480GB", "NVIDIA H200", False),
    ],
)
def test_the_gpu_that_is_here(wanted: str, here: str, *, met: bool) -> None:
    assert gpu_kind(wanted).is_met_by(here, "sm_90") is met
    assert not gpu_kind(wanted).is_met_by(here, "sm_80")


@pytest.mark.parametrize("text", ["", "h", "sm_", "sm_9", "H2000", "NVIDIA", "sm_90; x"])
def test_what_is_no_gpu(text: str) -> None:
    with pytest.raises(BadRequest, match="is no GPU that is known here"):
        gpu_kind(text)
