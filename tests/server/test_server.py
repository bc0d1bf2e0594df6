"""A warm-up server from start to end, with the stand-in of tests/fakes, where all goes well."""

import re
import urllib.request
from pathlib import Path

import psutil

from rayprep.server.server import Server
from rayprep.sglang.log import LogReader
from rayprep.sglang.warmup_requests import warmup_requests
from tests.server.bench import ONE, TESTS, Bench, fault


def get(server: Server, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        return answer.status, answer.read().decode()


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


def test_a_users_api_key_is_used(bench: Bench) -> None:
    with bench.server("--api-key=secret") as server:
        server.start()
        server.send([(ONE,)])


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
