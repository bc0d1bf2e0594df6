"""Metrics where no Ray cluster shows them: a text file that node_exporter's textfile collector reads.

Source: github.com/prometheus/node_exporter, "Textfile Collector".
"""

import errno
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rayprep.host.locks import acquire
from rayprep.host.owned import OwnedTree
from rayprep.model.metrics import METRICS, Sample, merge

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

LOCK_S = 10.0
_LARGEST = 1 << 20
"""Bytes: one host's samples have some kilobytes, and what is larger takes a hundred times its size to read."""
_LONGEST_LINE = 4096
"""Prometheus' own parser takes the square of a line's length: half a minute for a megabyte of blanks."""


def add_to_metrics_file(path: Path, samples: Iterable[Sample]) -> None:
    """Merges `samples` into what earlier runs left there. A file that is none of ours is written anew.

    Raises:
        OSError: it cannot be written.
        LockTimeout, HostUnfit: another run has had its lock for too long, or it cannot be locked.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    tree = OwnedTree(path.parent.parent)
    with acquire([path.with_suffix(".lock")], "metrics", LOCK_S, lambda *_: None, lambda: False):
        registry = CollectorRegistry()
        registry.register(_Collector(merge(_read(tree, path), samples)))
        tree.write(path, generate_latest(registry))


def _read(tree: OwnedTree, path: Path) -> list[Sample]:
    from prometheus_client.parser import text_string_to_metric_families

    by_name = {metric.name: metric for metric in METRICS}
    try:
        text = tree.read(path, _LARGEST).decode()
        if max(map(len, text.split("\n"))) > _LONGEST_LINE:
            return []
        families = list(text_string_to_metric_families(text))
    except (FileNotFoundError, ValueError):
        return []
    except OSError as error:
        if error.errno == errno.EFBIG:
            return []
        raise
    found = [each for family in families for each in family.samples if each.name in by_name]
    return [
        by_name[each.name].sample(each.value, *each.labels.values())
        for each in found
        if tuple(each.labels) == by_name[each.name].labels and _is_finite(each.value)  # else another version's
    ]


def _is_finite(value: float) -> bool:
    """Whether something can be added to it. The parser gives whole numbers of any length."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


class _Collector:
    """What `prometheus_client` writes: each metric once, with all of its samples."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = sorted(samples, key=lambda each: each.labels)

    def collect(self) -> "Iterator[Family]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in METRICS:
            kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for each in self._samples:
                if each.metric is metric:
                    family.add_metric(each.labels, each.value)
            yield family
