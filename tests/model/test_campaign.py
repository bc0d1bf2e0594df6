"""What the requests of a campaign come to together."""

import pytest

from rayprep.model.campaign import RequestEnd, exit_code, is_run_of, run_ids, status_line, worst_exit
from rayprep.model.result import RunStatus

OK = RequestEnd(status=RunStatus.OK, exit_code=0)
FAILED = RequestEnd(status=RunStatus.ERROR, exit_code=13)
IDS = run_ids("night", 2)


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 2], 2),
        ([2, 3, 0], 3),
        ([3, 1], 1),
        ([1, 4], 4),
        ([4, 14], 14),
        ([14, 11, 12], 11),
        ([10, 130], 130),
        ([130, 77], 77),
    ],
)
def test_the_worst_is_told(codes: list[int], worst: int) -> None:
    assert worst_exit(codes) == worst


def test_what_an_interrupt_kept_from_starting_is_interrupted() -> None:
    assert exit_code(IDS, {IDS[0]: OK}) == 130
    assert exit_code(IDS, {IDS[0]: OK, IDS[1]: FAILED}) == 13


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ([OK, OK], "ok night-1:ok night-2:ok"),
        ([FAILED, FAILED], "error night-1:error night-2:error"),
        ([OK, FAILED], "partial night-1:ok night-2:error"),
        ([OK], "partial night-1:ok night-2:not_started"),
        ([], "partial night-1:not_started night-2:not_started"),
    ],
)
def test_one_line_for_all(ends: list[RequestEnd], line: str) -> None:
    assert status_line(IDS, dict(zip(IDS, ends, strict=False))) == line


@pytest.mark.parametrize(
    ("run_id", "belongs"),
    [("a.b", True), ("a.b-1", True), ("a.b-12", True), ("a.b-x", False), ("axb-1", False), ("a.b-0", False)],
)
def test_a_campaigns_name_means_all_its_runs(run_id: str, belongs: bool) -> None:
    assert is_run_of(run_id, "a.b") is belongs
