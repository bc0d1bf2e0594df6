"""What a running server answers: its endpoints, their fields, and its metrics."""

import re
from pathlib import Path

from rayprep.model.telemetry import QUERY
from rayprep.sglang.warmup_requests import GenerateRequest, Sampling
from scripts.upstream.checks import AnyOf, File, Named
from scripts.upstream.contract import Contract, rows

_OBSERVABILITY = Path(__file__).parents[3] / "cluster" / "observability"
_METRIC = re.compile(r"sglang:[a-z][a-z0-9_]+")
_UNTIL = {"sglang:engine_startup_time": "0.5.16", "sglang:engine_load_weights_time": "0.5.16"}
"""Metrics that later releases do not have: they have these."""
_SINCE = {"sglang:startup_time_seconds": "0.5.17", "sglang:startup_cuda_graph_time_seconds": "0.5.17"}
_SERVER = ("sglang/srt/entrypoints/http_server.py",)


def metric_names() -> list[str]:
    """Return the metrics that the dashboard, the catalogue and the probe of a run name."""
    files = [path for ending in ("json", "md") for path in sorted(_OBSERVABILITY.glob(f"*.{ending}"))]
    named = {name for text in (*(path.read_text("utf-8") for path in files), QUERY) for name in _METRIC.findall(text)}
    return sorted({name.removesuffix("_bucket") for name in named})


def _metric(name: str) -> AnyOf:
    """Prometheus's client ends a counter's name in `_total`, whatever its code says."""
    names = dict.fromkeys((name, name.removesuffix("_total")))
    return AnyOf(tuple(Named("metric", name, ("sglang/srt/*.py",)) for name in names))


SERVING: tuple[Contract, ...] = (
    *rows("no server is seen to be ready: the stage ends by its time-out", Named("endpoint", "/health", _SERVER)),
    *rows(
        "the server answers 404 to the warm-up requests, and the stage fails", Named("endpoint", "/generate", _SERVER)
    ),
    *rows(
        "a user's `sglang serve` does not start",
        Named("command", "serve", ("sglang/cli/*.py",)),
        File("sglang/cli/main.py"),
    ),
    *rows(
        "the server refuses the warm-up requests, and the stage fails",
        *(
            Named("field of a request", name, ("sglang/srt/managers/io_struct.py",))
            for name in GenerateRequest.model_fields
        ),
        *(
            Named("sampling parameter", name, ("sglang/srt/sampling/sampling_params.py",))
            for name in Sampling.model_fields
        ),
    ),
    *(
        row
        for name in metric_names()
        for row in rows(
            "a panel of the dashboard, or a row of the catalogue, is empty",
            _metric(name),
            since=_SINCE.get(name),
            until=_UNTIL.get(name),
            replaced=name in _UNTIL,
        )
    ),
)
