"""The query for one run's samples, and the points that it is asked at."""

from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.records import read_tolerant
from rayprep.model.telemetry import RangeAnswer, points_between, query_of

TIME = st.floats(min_value=1.6e9, max_value=1.9e9)


def test_the_contracts_query() -> None:
    expected = 'increase(sglang:prompt_tokens_total{container_run="container-run-1"}[30s])'
    assert query_of("container-run-1") == expected


@given(TIME, st.floats(min_value=0, max_value=1e6))
def test_the_last_point_is_the_end_and_the_first_is_not_before_the_start(start: float, took: float) -> None:
    end = start + took
    first, step = points_between(start, end)
    assert start - 1e-3 <= first <= end
    count = (end - first) / step
    assert abs(count - round(count)) < 1e-3
    assert count <= 1001, "Prometheus gives 11000 points at most"


def test_points_are_counted_over_all_series() -> None:
    text = """{"status": "success", "data": {"resultType": "matrix", "result": [
        {"metric": {"a": "1"}, "values": [[1760000000.1, "0"], [1760000005.1, "3.5"]]},
        {"metric": {"a": "2"}, "values": [[1760000005.1, "NaN"]]}]}}"""
    assert read_tolerant(RangeAnswer, text).points == 3
