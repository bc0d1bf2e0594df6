"""A warm-up server from start to end, in good and in bad cases, with the stand-in of tests/fakes."""

import os
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from rayprep.host.process import marked_processes
from rayprep.host.server import Server, Watch
from rayprep.model.errors import ErrorType, Interrupted, StageError
from rayprep.model.server_log import LogReader
from rayprep.model.warmup import GenerateRequest, Sampling, warmup_requests
from tests.host.test_ports import free_port
from tests.processes import alive, wait_for

TESTS = Path(__file__).parent.parent
FAKE = (sys.executable, "-I", "-S", str(TESTS / "fakes" / "sglang_server.py"))
MARK = "RAYPREP_TEST_SERVER"

ONE = GenerateRequest(input_ids=((1, 2, 3),), sampling_params=Sampling(max_new_tokens=4))


@dataclass
class Bench:
    """Makes servers that leave no time to waste, and knows all processes that belong to them."""

    folder: Path
    reports: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    commands: list[tuple[str, ...]] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False

    @property
    def mark(self) -> str:
        return str(self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "serve.log"

    def server(
        self,
        *words: str,
        ports: Sequence[int] = (),
        seconds: float = 30,
        command_for: Callable[[int, float], Sequence[str]] | None = None,
        request_timeout_s: float = 20,
    ) -> Server:
        def fake(port: int, fraction: float) -> Sequence[str]:
            flags = ("--port", str(port), "--mem-fraction-static", str(fraction), "--skip-tokenizer-init")
            self.commands.append((*FAKE, *flags, *words))
            return self.commands[-1]

        # torch, where another test has imported it, leaves a cache variable of its own behind.
        environ = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        return Server(
            command_for or fake,
            ports or (free_port(),),
            0.96,
            {**environ, MARK: self.mark, "HOME": str(self.folder)},
            self.log,
            Watch(
                deadline=time.monotonic() + seconds,
                cancelled=lambda: bool(self.cancelled()),
                tick=lambda: self.ticks.append(time.monotonic()),
                report=lambda *said: self.reports.append(said),
            ),
            grace_s=0.5 if "deaf" in words else 30.0,
            poll_s=0.03,
            request_timeout_s=request_timeout_s,
        )

    def left(self) -> list[psutil.Process]:
        """What lives of any server's tree, guards too."""
        return marked_processes(MARK, self.mark)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    assert bench.left() == [], "no test may leave a process, however it went"


class Healthy(BaseHTTPRequestHandler):
    """Somebody else's server."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def fault(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--fault", name))


def get(server: Server, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        return answer.status, answer.read().decode()


def failing(server: Server, use: Callable[[Server], None] = Server.start) -> StageError:
    with pytest.raises(StageError) as caught, server:
        use(server)
    return caught.value


def start_and_send(server: Server) -> None:
    server.start()
    server.send([(ONE,)])


def test_a_good_server_from_start_to_end(bench: Bench) -> None:
    bench.log.write_text(
        "[stage] The server is fired up and ready to roll!\ntorch.OutOfMemoryError\n", encoding="utf-8"
    )
    with bench.server() as server:
        server.start()
        assert server.pid in {process.pid for process in bench.left()}
        assert str(server.port) in psutil.Process(server.pid).cmdline()
        assert (server.attempts, server.mem_fraction) == (1, 0.96)
        assert server.ready_s is not None
        assert 0 < server.ready_s < 20
        rounds = warmup_requests(1000, 500, 4)
        server.send(rounds)
        asked = sum(len(request.input_ids) for each in rounds for request in each)
        assert f"num_requests_total {asked}.0" in get(server, "/metrics")[1]
        cleanup = server.end()
    assert (cleanup.kill_sent, cleanup.killed) == (False, True), "it ends by itself, by its own SIGKILL"
    assert server.end() == server.cleanup == cleanup
    assert server.reader.jit_events == []
    assert "Draining requests" in server.log_tail()[-1]
    assert ("starting the warm-up server", None, None) in bench.reports
    assert ("capturing CUDA graph", 36, 36) in bench.reports
    assert ("sending warm-up requests", len(rounds), len(rounds)) == bench.reports[-1]


def test_the_stand_in_is_like_the_recorded_server(bench: Bench) -> None:
    """One reader hears both; and its endpoints answer as the recorded access log says."""
    recorded = LogReader()
    for line in re.split(r"[\r\n]+", (TESTS / "data" / "server-cold.log").read_bytes().decode()):
        recorded.hear(line)
    with bench.server("--compile") as server:
        server.start()
        assert get(server, "/model_info")[0] == get(server, "/v1/models")[0] == 200
        assert len(server.reader.jit_events) == 2, "what the recorded server was not asked to say"
    heard = server.reader
    assert (heard.gemm_shapes, heard.args) == (recorded.gemm_shapes, recorded.args)
    assert heard.ready == recorded.ready
    assert heard.memory_pool_ended == recorded.memory_pool_ended
    assert heard.hint == recorded.hint


def test_a_second_start_finds_all_that_the_first_compiled(bench: Bench) -> None:
    def files() -> set[Path]:
        return {path for path in bench.folder.rglob("*") if path.is_file() and path != bench.log}

    assert files() == set()
    seen = []
    for _ in range(2):
        with bench.server("--compile") as server:
            server.start()
        seen.append((files(), len(server.reader.jit_events)))
    (first, compiled), (second, again) = seen
    assert len(first) == 11
    assert (second, compiled, again) == (first, 2, 0)


def test_it_is_not_ready_before_its_health_is(bench: Bench) -> None:
    error = failing(bench.server(*fault("never-ready"), seconds=4))
    assert error.error_type is ErrorType.STAGE_TIMEOUT
    assert "capturing CUDA graph" in error.message
    assert any("Uvicorn running" in line for line in error.log_tail), "although it listens and answers /model_info"
    assert len(bench.ticks) > 4


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("dies-at-start", ErrorType.SERVER_START_FAILED, "ended by status 3 before it was ready"),
        ("model-gone", ErrorType.SERVER_START_FAILED, "Incorrect path_or_model_id: '/models/gone'"),
        ("no-nvcc", ErrorType.TOOLCHAIN_MISMATCH, "nvcc: not found"),
        ("old-headers", ErrorType.TOOLCHAIN_MISMATCH, "toolkit headers are incompatible"),
        ("disk-full", ErrorType.INSUFFICIENT_DISK, "No space left on device"),
        ("nvrtc", ErrorType.NVRTC_COMPILE_FAILED, "NVRTC log: kernel.cu"),
        ("bad-kernel", ErrorType.COMPILE_FAILED, "NVCC compilation failed"),
        ("host-oom", ErrorType.OOM_DURING_WARMUP, "exit code: -9"),
    ],
)
def test_a_server_that_dies_before_it_is_ready(bench: Bench, name: str, expected: ErrorType, words: str) -> None:
    server = bench.server(*fault(name))
    error = failing(server)
    assert error.error_type is expected
    assert words in error.message
    assert error.log_tail == server.log_tail()
    assert server.attempts == 1
    assert server.ready_s is None
    assert server.cleanup is not None
    assert server.cleanup.killed


def test_out_of_memory_once_is_tried_with_less(bench: Bench) -> None:
    with bench.server(*fault("oom")) as server:
        server.start()
        assert (server.attempts, server.mem_fraction) == (2, 0.93)
        assert "0.93" in psutil.Process(server.pid).cmdline()
        assert len(server.cleanups) == 1
    assert len(server.cleanups) == 2


def test_too_little_memory_for_prefill_graphs_is_tried_with_less(bench: Bench) -> None:
    with bench.server(*fault("no-graphs")) as server:
        server.start()
        assert (server.attempts, server.mem_fraction) == (2, 0.93)


def test_out_of_memory_twice_is_an_error(bench: Bench) -> None:
    server = bench.server(*fault("oom-always"))
    error = failing(server)
    assert error.error_type is ErrorType.OOM_DURING_WARMUP
    assert "at mem fraction 0.96 and 0.93" in error.message
    assert "Tried to allocate 2.00 GiB" in error.message
    assert server.attempts == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--mem-fraction-static", "0.88"), "GPU memory at mem fraction 0.88: "), ((), "GPU memory: ")],
)
def test_a_command_that_heeds_no_fraction_is_not_tried_twice(bench: Bench, words: tuple[str, ...], said: str) -> None:
    port = free_port()
    own = (*FAKE, f"--port={port}", *words, *fault("oom-always"))
    server = bench.server(ports=(port,), command_for=lambda *_: own)
    error = failing(server)
    assert error.error_type is ErrorType.OOM_DURING_WARMUP
    assert said in error.message
    assert error.hint == "lower its --mem-fraction-static, or free the GPU"
    assert server.attempts == 1


def test_less_memory_does_not_help_a_server_that_wants_more(bench: Bench) -> None:
    server = bench.server(*fault("too-little"))
    error = failing(server)
    assert error.error_type is ErrorType.OOM_DURING_WARMUP
    assert error.hint.startswith("raise --mem-fraction")
    assert server.attempts == 1


def test_a_taken_port_is_passed_over(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        free = free_port()
        with bench.server(ports=(holder.getsockname()[1], free)) as server:
            server.start()
            assert (server.port, server.attempts) == (free, 1)


def test_a_port_taken_between_probe_and_bind(bench: Bench) -> None:
    ports, holders = (free_port(), free_port()), []

    def command_for(port: int, fraction: float) -> Sequence[str]:
        if not holders:
            holders.append(socket.create_server(("127.0.0.1", port)))
        return (*FAKE, "--port", str(port))

    with bench.server(ports=ports, command_for=command_for) as server:
        server.start()
        assert (server.port, server.attempts) == (ports[1], 2)
    holders[0].close()


def saying(line: str, *command: str) -> Callable[[int, float], Sequence[str]]:
    """A command that writes a line first."""
    return lambda port, _: ("sh", "-c", 'echo "$0"; exec "$@"', line, *command, "--port", str(port))


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


def test_a_command_that_goes_to_the_background_is_told_not_to(bench: Bench) -> None:
    error = failing(bench.server(command_for=saying("started", "true")))
    assert error.error_type is ErrorType.SERVER_START_FAILED
    assert "ended by status 0 before it was ready" in error.message
    assert "stay in the foreground" in error.hint


def test_anothers_server_at_the_port_is_not_taken_for_ours(bench: Bench) -> None:
    """It took the port after our probe, and answers long before ours has come so far as to bind it."""
    ports, others = (free_port(), free_port()), []

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


def test_one_that_dies_when_ready(bench: Bench) -> None:
    def use(server: Server) -> None:
        server.start()
        while True:
            server.send([(ONE,)])

    error = failing(bench.server(*fault("dies-when-ready")), use)
    assert error.error_type is ErrorType.SERVER_CRASHED
    assert "status 1 after it was ready: RuntimeError: CUDA error: an illegal memory access" in error.message


def test_one_that_dies_of_a_request(bench: Bench) -> None:
    error = failing(bench.server(*fault("dies-on-request")), start_and_send)
    assert error.error_type is ErrorType.SERVER_CRASHED
    assert "ended by signal 9 after it was ready" in error.message


def test_one_that_is_killed_while_it_is_asked_is_seen_before_the_request_fails(bench: Bench) -> None:
    with pytest.raises(StageError) as caught, bench.server(*fault("hangs")) as server:
        server.start()
        process = psutil.Process(server.pid)

        def kill() -> bool:
            if ("sending warm-up requests", 0, 1) in bench.reports:
                process.kill()
            return False

        bench.cancelled = kill
        server.send([(ONE, ONE)])
    assert caught.value.error_type is ErrorType.SERVER_CRASHED
    assert "ended by signal 9 after it was ready" in caught.value.message


def test_one_that_hangs_until_the_requests_time_is_over(bench: Bench) -> None:
    error = failing(bench.server(*fault("hangs"), request_timeout_s=0.3), start_and_send)
    assert error.error_type is ErrorType.SERVER_CRASHED
    assert "did not answer a request of 1 x 3 tokens within 0.3 s" in error.message


def test_one_that_hangs_until_the_stages_time_is_over(bench: Bench) -> None:
    assert failing(bench.server(*fault("hangs"), seconds=3), start_and_send).error_type is ErrorType.STAGE_TIMEOUT


@pytest.mark.parametrize(
    ("name", "error_type", "words"),
    [
        (
            "errors",
            ErrorType.UNSUPPORTED,
            "answered 400 to a request of 1 x 3 tokens: .*longer than the model",
        ),
        ("fails", ErrorType.SERVER_CRASHED, "answered 500 to a request of 1 x 3 tokens: Internal Server Error"),
    ],
)
def test_an_answer_other_than_200(bench: Bench, name: str, error_type: ErrorType, words: str) -> None:
    error = failing(bench.server(*fault(name)), start_and_send)
    assert error.error_type is error_type
    assert re.search(words, error.message)
    assert ("--context-length" in error.hint) == (error_type is ErrorType.UNSUPPORTED), "a refusal is no crash"


def test_a_users_api_key_is_used(bench: Bench) -> None:
    with bench.server("--api-key=secret") as server:
        server.start()
        server.send([(ONE,)])


def test_being_cancelled_ends_it(bench: Bench) -> None:
    with pytest.raises(Interrupted), bench.server(*fault("never-ready")) as server:
        bench.cancelled = lambda: server.reader.ready is False and server.reader.memory_pool_ended
        server.start()
    assert server.cleanup is not None
    assert server.cleanup.killed


def test_one_that_refuses_term_is_killed(bench: Bench) -> None:
    with bench.server(*fault("deaf")) as server:
        server.start()
        tree = bench.left()
        cleanup = server.end()
        assert alive(tree) == []
    assert (cleanup.kill_sent, cleanup.killed, cleanup.timeout_s) == (True, True, 0.5)


def test_daemons_of_its_own_are_ended_too(bench: Bench) -> None:
    with bench.server(*fault("daemons")) as server:
        server.start()
        wait_for(lambda: len(bench.left()) == 4, "a guard, the server and two daemons")
        server.end()
        assert bench.left() == []


def test_a_flood_that_is_no_utf8_neither_blocks_it_nor_hides_it(bench: Bench) -> None:
    with bench.server(*fault("floods", "not-utf8")) as server:
        server.start()
    assert server.reader.args.context_length == 40960, "which is said after the flood"
    assert bench.log.stat().st_size > 40_000_000
    assert max(map(len, server.log_tail())) <= 500


def test_what_it_is_given(bench: Bench) -> None:
    with bench.server() as server:
        server.start()
        environ = psutil.Process(server.pid).environ()
    assert environ["SGLANG_WARMUP_TIMEOUT"] == "3600"
    assert environ["PYTHONUNBUFFERED"] == "1"


def test_a_server_that_was_never_started_ends_well(bench: Bench) -> None:
    with bench.server() as server:
        assert server.end().killed
    assert (server.cleanup, server.pid, server.log_tail()) == (None, None, ())
