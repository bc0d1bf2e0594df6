"""Where traces go: `--otlp-endpoint`, and what it is called elsewhere.

Source: sglang 0.5.16, srt/observability/trace.py, where a variable names the protocol, and gRPC is what it means
without; the OpenTelemetry protocol's specification for the path of traces over HTTP.
"""

import re
from urllib.parse import urlsplit

from rayprep.base.records import Record

PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-http")
"""SGLang dies with tracing on where one of them is missing."""
GRPC, HTTP = "grpc", "http/protobuf"
_HOST_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_TRACES = "/v1/traces"


class OtlpEndpoint(Record):
    """A collector, and the protocol that it is spoken to with."""

    protocol: str
    address: str
    """`HOST:PORT` for gRPC, the whole URL for HTTP."""

    @property
    def server_env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": self.protocol}


def parse_endpoint(text: str) -> OtlpEndpoint:
    """`HOST:PORT` is gRPC, `http://HOST:PORT` is HTTP with the path that it has for traces.

    Raises:
        ValueError: it is neither.
    """
    if (plain := _HOST_PORT.fullmatch(text)) and 0 < int(plain[2]) < 65536:
        return OtlpEndpoint(protocol=GRPC, address=text)
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
        path = parts.path if parts.path.strip("/") else _TRACES
        return OtlpEndpoint(protocol=HTTP, address=f"{parts.scheme}://{parts.netloc}{path}")
    raise ValueError("an OTLP endpoint is HOST:PORT for gRPC, or http://HOST:PORT")
