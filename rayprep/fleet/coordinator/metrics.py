"""Metrics where there is a Ray cluster: each node's metrics endpoint shows them, with `ray_` before their names."""

from collections.abc import Iterable

from ray.util import metrics

from rayprep.fleet.handles import Handle
from rayprep.model.metrics import METRICS, Metric, Sample


class RayMetrics:
    """All metrics of this process, which has to be one of Ray's."""

    def __init__(self) -> None:
        self._made: dict[Metric, Handle] = {
            each: (metrics.Counter if each.is_counter else metrics.Gauge)(each.name, each.help, each.labels)
            for each in METRICS
        }

    def record(self, samples: Iterable[Sample]) -> None:
        for each in samples:
            made, tags = self._made[each.metric], dict(zip(each.metric.labels, each.labels, strict=True))
            if not each.metric.is_counter:
                made.set(each.value, tags)
            elif each.value > 0:  # Ray refuses to add nothing
                made.inc(each.value, tags)
