"""How a host's GPUs are dealt out to servers."""

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.model.slices import Asked, count_slices, deal


@pytest.mark.parametrize(
    ("asked", "tp", "gpus", "count"),
    [(1, 2, 8, 1), (4, 2, 8, 4), ("all", 1, 8, 8), ("all", 4, 7, 1), ("all", 1, 0, 1), (1, 1, 0, 1)],
)
def test_as_many_as_asked_or_as_fit(asked: Asked, tp: int, gpus: int, count: int) -> None:
    assert count_slices(asked, tp, gpus) == count


def test_more_than_fit_are_refused() -> None:
    with pytest.raises(HostUnfit, match="3 slices at tp 2 need 6 GPUs, this host has 5"):
        count_slices(3, 2, 5)


def test_no_two_slices_share_a_gpu_and_the_rest_is_nobodys() -> None:
    assert deal("abcde", 2, 2) == (("a", "b"), ("c", "d"))
    assert deal("abcde", 1, 1) == (("a",),)
    assert deal("", 2, 1) == ((),)
