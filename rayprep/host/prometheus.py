"""Asks Prometheus about a run. It may be missing, or hang: that is an answer, too."""

import http.client
import time
import urllib.parse

from pydantic import ValidationError

from rayprep.base.records import read_tolerant
from rayprep.base.text import one_line
from rayprep.model.container_manifest import Manifest
from rayprep.model.telemetry import RangeAnswer, TelemetryProbe, points_between, query_of

TIMEOUT_S = 5.0
_LARGEST = 16 << 20


def probe(container: Manifest | None, run_id: str, start: float, end: float) -> TelemetryProbe:
    """Counts the points of the run's servers between two times, in seconds since the epoch. Never raises."""
    query = query_of(container.run_id if container else run_id)
    if container is None or (service := container.services.get("prometheus")) is None:
        return TelemetryProbe(with_run_filter=query, reason="no_prometheus: this is not in a container run")
    try:
        points = count_points(service.url, query, start, end)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = one_line(str(error), 300)
        return TelemetryProbe(with_run_filter=query, reason=f"no_answer: {service.url}: {why}")
    return TelemetryProbe(
        with_run_filter=query, sample_count=points, ok=points > 0, reason=None if points else "no_samples"
    )


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, up to a bound. Raises TimeoutError where it comes too slowly."""
    parts, left = [], _LARGEST
    while left and (part := response.read1(left)):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > deadline:
            raise TimeoutError(f"it has not answered whole within {TIMEOUT_S:.0f} s")
    return b"".join(parts)


def count_points(url: str, query: str, start: float, end: float) -> int:
    """Raises OSError or http.client.HTTPException where nothing answers, ValueError where it is no Prometheus."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError("it is not on this host")  # others can write to the manifest
    first, step = points_between(start, end)
    asked = {"query": query, "start": f"{first:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}/api/v1/query_range?{urllib.parse.urlencode(asked)}")
        response = connection.getresponse()
        body = _read(response, time.monotonic() + TIMEOUT_S)
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ValueError(f"status {response.status}: {body[:200].decode(errors='replace')}")
    try:
        return read_tolerant(RangeAnswer, body).points
    except ValidationError:
        raise ValueError("what answers there is no Prometheus") from None
