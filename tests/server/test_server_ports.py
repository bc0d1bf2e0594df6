"""A warm-up server whose port, or another that it wants, somebody else has."""

import socket
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

from rayprep.base.errors import ErrorType
from tests.host.test_ports import free_port
from tests.server.bench import FAKE, Bench, failing, fault, saying


class Healthy(BaseHTTPRequestHandler):
    """Somebody else's server."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_taken_port_is_passed_over(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        free = free_port()
        with bench.server(ports=(holder.getsockname()[1], free)) as server:
            server.start()
            assert (server.port, server.attempts) == (free, 1)


def test_a_port_taken_between_probe_and_bind(bench: Bench) -> None:
    ports = (free_port(), free_port())
    holders: list[socket.socket] = []

    def command_for(port: int, fraction: float) -> Sequence[str]:
        if not holders:
            holders.append(socket.create_server(("127.0.0.1", port)))
        return (*FAKE, "--port", str(port))

    with bench.server(ports=ports, command_for=command_for) as server:
        server.start()
        assert (server.port, server.attempts) == (ports[1], 2)
    holders[0].close()


OTHER_PORT = "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 9400): address already in use"


def test_another_port_that_is_taken_is_no_hindrance(bench: Bench) -> None:
    """A metrics exporter's, for one."""
    for line in (OTHER_PORT, "OSError: [Errno 98] Address already in use"):
        with bench.server(command_for=saying(line, *FAKE)) as server:
            server.start()
            assert server.attempts == 1


def test_one_that_dies_of_another_port_is_not_started_again(bench: Bench) -> None:
    server = bench.server(ports=(free_port(), free_port()), command_for=saying(OTHER_PORT, "false"))
    error = failing(server)
    assert error.error_type is ErrorType.SERVER_START_FAILED
    assert "address ('0.0.0.0', 9400): address already in use" in error.message
    assert server.attempts == 1


def test_one_that_dies_of_a_port_without_naming_it_is_tried_on_the_next(bench: Bench) -> None:
    line = "OSError: [Errno 98] Address already in use"
    server = bench.server(ports=(free_port(), free_port()), command_for=saying(line, "false"))
    assert failing(server).error_type is ErrorType.PORT_ALL_BUSY
    assert server.attempts == 2


def test_anothers_server_at_the_port_is_not_taken_for_ours(bench: Bench) -> None:
    """It took the port after our probe, and answers long before ours has come so far as to bind it."""
    ports = (free_port(), free_port())
    others: list[HTTPServer] = []

    def command_for(port: int, fraction: float) -> Sequence[str]:
        if not others:
            others.append(HTTPServer(("127.0.0.1", port), Healthy))
            threading.Thread(target=others[0].serve_forever, daemon=True).start()
        return (*FAKE, "--port", str(port), *fault("floods"))

    with bench.server(ports=ports, command_for=command_for) as server:
        server.start()
        assert (server.port, server.attempts) == (ports[1], 2)
    assert Healthy.asked > 0
    others[0].shutdown()
    others[0].server_close()


def test_all_ports_are_taken(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        error = failing(bench.server(ports=(holder.getsockname()[1],)))
    assert error.error_type is ErrorType.PORT_ALL_BUSY
    assert bench.commands == []
