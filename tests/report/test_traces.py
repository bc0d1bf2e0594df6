"""A run's stages as spans, at a real OTLP receiver."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from rayprep.base.errors import ErrorType
from rayprep.base.otlp import parse_endpoint
from rayprep.model.events import Phase, event
from rayprep.report.host_view import LineView, View
from rayprep.report.traces import traced
from tests.host.test_ports import free_port


class Receiver:
    """What it was sent, decoded."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> dict[str, Span]:
        (request,) = self.requests
        (resource,) = request.resource_spans
        assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "rayprep"
        return {span.name: span for scope in resource.scope_spans for span in scope.spans}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@contextmanager
def run(endpoint: str) -> Iterator[tuple[View, io.StringIO]]:
    shown = io.StringIO()
    with traced(LineView(shown, json_lines=False), parse_endpoint(endpoint), "run-1") as view:
        yield view, shown


def attributes(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_a_stage_is_a_span_within_its_run(receiver: Receiver) -> None:
    with run(receiver.endpoint) as (view, shown):
        view.show(event("deep_gemm", Phase.START, settings={}))
        view.show(event("flashinfer", Phase.START, settings={}, host="gpu-01"))
        view.show(event("deep_gemm", Phase.END, status="ok", duration_s=2.0))
        failed = {"status": "error", "error_type": ErrorType.COMPILE_FAILED, "message": "norm did not compile"}
        view.show(event("flashinfer", Phase.END, duration_s=3.0, host="gpu-01", **failed))
        view.show(event("inductor", Phase.END, status="skipped", duration_s=0.0, reason="no_gpu"))
        view.show(event("ensure", Phase.END, status="partial", duration_s=3.0))
        assert receiver.requests == [], "they are sent when the run ends"
    spans = receiver.spans
    assert set(spans) == {"ensure", "deep_gemm", "flashinfer", "inductor"}
    root = spans["ensure"]
    assert attributes(root) == {"rayprep.run_id": "run-1", "rayprep.status": "partial"}
    for name in ("deep_gemm", "flashinfer", "inductor"):
        assert spans[name].parent_span_id == root.span_id
        assert spans[name].trace_id == root.trace_id
        assert root.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
    assert attributes(spans["inductor"])["rayprep.reason"] == "no_gpu"
    assert attributes(spans["flashinfer"])["rayprep.host"] == "gpu-01"
    assert attributes(spans["flashinfer"])["rayprep.error_type"] == "compile_failed"
    assert spans["flashinfer"].status.code == Status.STATUS_CODE_ERROR
    assert spans["flashinfer"].status.message == "norm did not compile"
    assert "no traces" not in shown.getvalue()


def test_an_end_without_a_start_took_as_long_as_it_says(receiver: Receiver) -> None:
    with run(receiver.endpoint) as (view, _):
        view.show(event("serve", Phase.END, status="ok", duration_s=2.5))
    span = receiver.spans["serve"]
    assert span.end_time_unix_nano - span.start_time_unix_nano == 2_500_000_000


def test_a_collector_that_is_not_there_costs_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayprep.report.traces.SEND_S", 1)
    endpoint = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with run(endpoint) as (view, shown):
        view.show(event("serve", Phase.END, status="ok", duration_s=2.5))
    assert time.monotonic() - began < 10
    assert f"warning: no traces: {endpoint}/v1/traces did not take them" in shown.getvalue()
    assert capfd.readouterr() == ("", ""), "nothing of OpenTelemetry's own"


def test_without_an_endpoint_the_view_is_the_view() -> None:
    view = LineView(io.StringIO(), json_lines=False)
    assert traced(view, None, "run-1") is view
