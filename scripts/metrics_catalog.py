#!/usr/bin/env python3
"""Prints parts of cluster/observability/metrics_catalog.final.md.

scripts/metrics_catalog.py                                          rayprep's own metrics
scripts/metrics_catalog.py tests/data/metrics-sglang-0.5.16.txt     SGLang's, from what a server answered on /metrics
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from rayprep.model.metrics import METRICS

_NOT_SHOWN = (
    "le",
    "endpoint",
    "method",
    "status_code",
    "model_name",
    "engine_type",
    "tp_rank",
    "pp_rank",
    "moe_ep_rank",
)
"""Labels that most series have, or that a histogram has by nature."""


def sglang_part(text: str) -> str:
    """A table of every metric in a Prometheus text exposition: name, kind, the labels that are its own, help."""
    rows = [_row(family) for family in text_string_to_metric_families(text)]
    return _table(sorted(rows))


def rayprep_part() -> str:
    """The same of the metrics that rayprep writes."""
    return _table(
        f"| `{each.name}` | {'counter' if each.is_counter else 'gauge'} | {', '.join(each.labels)}"
        f" | {each.help.rstrip('.')} |"
        for each in METRICS
    )


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| metric | kind | labels | |", "|---|---|---|---|", *rows]) + "\n"


def _row(family: Metric) -> str:
    # As it is asked for: the parser takes the ending off a counter's name.
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = sorted({label for sample in family.samples for label in sample.labels} - {*_NOT_SHOWN})
    return f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation.rstrip('.')} |"


if __name__ == "__main__":
    print(sglang_part(Path(sys.argv[1]).read_text(encoding="utf-8")) if sys.argv[1:] else rayprep_part(), end="")
