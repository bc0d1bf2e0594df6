"""Whether Prometheus has seen a run: what it is asked, and what it answers."""

from rayprep.base.records import Record

QUERY = "increase(sglang:prompt_tokens_total[30s])"
WINDOW_S = 30.0
_STEP_S = 5.0
_MOST_POINTS = 1000


class TelemetryProbe(Record):
    """Whether Prometheus has samples of the servers that the run started. `reason` says why not."""

    prometheus_query: str = QUERY
    with_run_filter: str
    sample_count: int = 0
    """Points of the filtered query between the run's start and its end."""
    ok: bool = False
    reason: str | None = None


def query_of(container_run: str) -> str:
    """The query for one container run's series."""
    return QUERY.replace("_total", f'_total{{container_run="{container_run}"}}')


def points_between(start: float, end: float) -> tuple[float, float]:
    """The first point to ask for and the seconds between two, so that the last one is `end` itself."""
    step = max(_STEP_S, (end - start) / _MOST_POINTS)
    return end - step * int(max(0.0, end - start) / step), step


class _Series(Record):
    values: tuple[tuple[float, str], ...]


class _Matrix(Record):
    result: tuple[_Series, ...]


class RangeAnswer(Record):
    """Source: prometheus.io/docs/prometheus/latest/querying/api, "Range queries"."""

    status: str
    data: _Matrix

    @property
    def points(self) -> int:
        return sum(len(series.values) for series in self.data.result)
