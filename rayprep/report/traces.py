"""A run's stages as OpenTelemetry spans, made of its events and sent when it ends."""

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rayprep import __version__
from rayprep.base.otlp import GRPC, OtlpEndpoint
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.stages import StageStatus
from rayprep.report.fleet_view import FleetView
from rayprep.report.host_view import View

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_RUN = "ensure"
SEND_S = 5
"""A collector that does not answer holds a run's end up for no longer."""


def traced(view: View, endpoint: OtlpEndpoint | None, run_id: str) -> View:
    """`view`, or one around it that sends spans to `endpoint` as well."""
    return view if endpoint is None else _TracedView(view, endpoint, run_id)


def traced_fleet(view: FleetView, endpoint: OtlpEndpoint | None, run_id: str) -> FleetView:
    """The same of a fleet's view: the stages of all hosts, each with its host."""
    return view if endpoint is None else _TracedFleetView(view, endpoint, run_id)


class _TracedView:
    """Shows what the inner view shows. A stage is a span from its start to its end, the run is the span around them."""

    def __init__(self, inner: View, endpoint: OtlpEndpoint, run_id: str) -> None:
        self._inner, self._endpoint, self._run_id = inner, endpoint, run_id
        self._began = time.time_ns()
        self._started: dict[tuple[str | None, str], int] = {}
        self._ended: list[tuple[Event, int, int]] = []

    def show(self, event: Event) -> None:
        self._inner.show(event)
        now, key = time.time_ns(), (event.host, event.name)
        if event.phase is Phase.START:
            self._started[key] = now
        elif event.phase is Phase.END:
            took = int((event.duration_s or 0) * 1e9)
            self._ended.append((event, self._started.pop(key, now - took), now))

    def refresh(self) -> None:
        self._inner.refresh()

    def __enter__(self) -> "_TracedView":
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if problem := self._send():
            self._inner.show(event("ensure", Phase.WARNING, message=f"no traces: {problem}"))
        self._inner.__exit__(kind, error, trace)

    def _send(self) -> str | None:
        """Returns in one line why nothing was sent."""
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails is said here, in one line
        try:
            from opentelemetry.sdk.trace.export import SpanExportResult

            exporter = _exporter(self._endpoint)
            spans = self._spans()
        except ImportError as error:
            return f"{error.name} is not installed (pip install 'rayprep[otel]')"
        try:
            sent = exporter.export(spans)
        finally:
            exporter.shutdown()
        return None if sent is SpanExportResult.SUCCESS else f"{self._endpoint.address} did not take them"

    def _spans(self) -> "Sequence[ReadableSpan]":
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.trace import set_span_in_context

        made = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource.create({"service.name": "rayprep"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(made))
        tracer = provider.get_tracer("rayprep", __version__)
        run = tracer.start_span(_RUN, start_time=self._began, attributes={"rayprep.run_id": self._run_id})
        for each, start, end in self._ended:
            if each.name == _RUN and each.host is None:
                _finish(run, each)
                continue
            span = tracer.start_span(each.name, set_span_in_context(run), start_time=start)
            _finish(span, each)
            span.end(end)
        run.end(time.time_ns())
        return made.get_finished_spans()


class _TracedFleetView(_TracedView):
    def __init__(self, inner: FleetView, endpoint: OtlpEndpoint, run_id: str) -> None:
        super().__init__(inner, endpoint, run_id)
        self._fleet = inner

    def update(self, result: FleetResult) -> None:
        self._fleet.update(result)

    def __enter__(self) -> "_TracedFleetView":
        super().__enter__()
        return self


def _finish(span: "Span", end: Event) -> None:
    """What the event says of the end."""
    from opentelemetry.trace import Status, StatusCode

    said = {"status": end.status, "reason": end.reason, "host": end.host, "error_type": end.error_type}
    span.set_attributes({f"rayprep.{name}": str(value) for name, value in said.items() if value is not None})
    if end.status == StageStatus.ERROR:
        span.set_status(Status(StatusCode.ERROR, end.message))


def _exporter(endpoint: OtlpEndpoint) -> "SpanExporter":
    if endpoint.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        # Named by its type, since a checker without that package knows none.
        exporter: SpanExporter = GrpcExporter(endpoint=endpoint.address, insecure=True, timeout=SEND_S)
        return exporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=endpoint.address, timeout=SEND_S)
