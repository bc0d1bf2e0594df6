"""What a host's agent is told of the GPUs that Ray gave to its claim."""

import pytest

from rayprep.fleet.coordinator.claim import GpuClaim


@pytest.mark.parametrize(
    ("given", "told"),
    [("3,2", "2,3"), ("10,9,2", "2,9,10"), ("GPU-b,GPU-a", "GPU-b,GPU-a"), ("0", "0"), ("", "")],
)
def test_neighbours_come_after_one_another(monkeypatch: pytest.MonkeyPatch, given: str, told: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert GpuClaim().visible() == told
