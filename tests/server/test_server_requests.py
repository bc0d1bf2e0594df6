"""A warm-up server that fails once it is ready: it dies, hangs, or refuses what it is asked."""

import re

import psutil
import pytest

from rayprep.base.errors import ErrorType, StageError
from rayprep.server.server import Server
from tests.server.bench import ONE, Bench, failing, fault, start_and_send


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
    assert "ended by signal 9 after it was ready: RuntimeError: CUDA error: an illegal memory" in error.message
    assert error.hint == f"read {bench.log}"


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
    assert error.hint == f"read {bench.log}"


def test_the_exception_that_an_answer_comes_of_is_told(bench: Bench) -> None:
    """As uvicorn writes one that a handler raises."""
    trace = "ERROR:    Exception in ASGI application\nTraceback (most recent call last):\n"
    trace += '  File "/site/sglang/srt/entrypoints/http_server.py", line 7, in generate\nsglang.Lost: batch 7\n'

    def use(server: Server) -> None:
        server.start()
        with bench.log.open("a") as log:
            log.write(trace)
        server.send([(ONE,)])

    error = failing(bench.server(*fault("fails")), use)
    assert error.error_type is ErrorType.SERVER_CRASHED
    assert error.message.endswith("Internal Server Error; the last exception of its log: sglang.Lost: batch 7")


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
