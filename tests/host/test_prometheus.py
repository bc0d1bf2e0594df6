"""What is said where Prometheus is missing, hangs or is something else."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rayprep.host import prometheus
from rayprep.host.prometheus import probe
from rayprep.model.container_manifest import Manifest, services
from rayprep.model.telemetry import TelemetryProbe
from tests.host.test_ports import free_port
from tests.model.test_container_manifest import manifest


def asked(port: int) -> TelemetryProbe:
    service = services(0)["prometheus"].model_copy(update={"url": f"http://127.0.0.1:{port}"})
    container: Manifest = manifest().model_copy(update={"services": {"prometheus": service}})
    return probe(container, "run-1", 1760000000.0, 1760000010.0)


def test_outside_a_container_run_nobody_is_asked() -> None:
    found = probe(None, "run-1", 0.0, 1.0)
    assert (found.ok, found.sample_count) == (False, 0)
    assert found.reason == "no_prometheus: this is not in a container run"
    assert 'container_run="run-1"' in found.with_run_filter


def test_nobody_listens() -> None:
    found = asked(free_port())
    assert not found.ok
    assert found.reason is not None
    assert found.reason.startswith("no_answer: http://127.0.0.1:")
    assert "refused" in found.reason


def test_one_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = asked(silent.getsockname()[1])
    assert found.reason is not None
    assert "timed out" in found.reason


@pytest.fixture
def page() -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>not Prometheus</html>")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_something_else_answers(page: int) -> None:
    found = asked(page)
    assert found.reason is not None
    assert found.reason.endswith("what answers there is no Prometheus")


def test_one_that_drips_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_S", 0.5)
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 16000000\r\n\r\n")
            while not over.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=drip, args=(listener,))
        server.start()
        began = time.monotonic()
        try:
            found = asked(listener.getsockname()[1])
            took = time.monotonic() - began
        finally:
            over.set()
            server.join(10)
    assert took < 5
    assert found.reason is not None
    assert "has not answered whole" in found.reason


@pytest.mark.parametrize("url", ["http://10.0.0.1:9090", "http://example.org", "file:///etc/passwd", "ftp://127.0.0.1"])
def test_nobody_is_asked_elsewhere(url: str) -> None:
    """Others can write to the manifest."""
    service = services(0)["prometheus"].model_copy(update={"url": url})
    container: Manifest = manifest().model_copy(update={"services": {"prometheus": service}})
    found = probe(container, "run-1", 0.0, 10.0)
    assert found.reason is not None
    assert "it is not on this host" in found.reason
