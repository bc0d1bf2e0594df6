"""A warm-up server that does not become ready, or only with less memory."""

import psutil
import pytest

from rayprep.base.errors import MEANING, ErrorType
from tests.host.test_ports import free_port
from tests.server.bench import FAKE, Bench, failing, fault, saying


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


def test_the_last_exception_its_kernel_its_limit_and_the_log_are_told(bench: Bench) -> None:
    server = bench.server(*fault("out-of-resources"))
    error = failing(server)
    assert error.error_type is ErrorType.SERVER_START_FAILED
    assert error.line == (
        "the warm-up server ended by signal 9 before it was ready: fused_moe_kernel: "
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 262144, Hardware limit: "
        f"232448. Reducing block sizes or `num_stages` may help. (read {bench.log})"
    )
    assert server.attempts == 1, "less GPU memory would not help"
    death = server.reader.death
    assert death is not None
    assert (death.kernel, death.while_capturing) == ("fused_moe_kernel", True)


@pytest.mark.parametrize(
    ("name", "expected", "hint"),
    [
        ("model-gone", ErrorType.SERVER_START_FAILED, "read {}"),
        ("bad-kernel", ErrorType.COMPILE_FAILED, "read {}"),
        ("nvrtc", ErrorType.NVRTC_COMPILE_FAILED, "read {}; try nvcc instead of NVRTC"),
        ("disk-full", ErrorType.INSUFFICIENT_DISK, f"{MEANING[ErrorType.INSUFFICIENT_DISK][1]}; read {{}}"),
    ],
)
def test_the_log_is_named(bench: Bench, name: str, expected: ErrorType, hint: str) -> None:
    error = failing(bench.server(*fault(name)))
    assert error.error_type is expected
    assert error.hint == hint.format(bench.log)


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
    assert error.hint == f"lower its --mem-fraction-static, or free the GPU; read {bench.log}"
    assert server.attempts == 1


def test_less_memory_does_not_help_a_server_that_wants_more(bench: Bench) -> None:
    server = bench.server(*fault("too-little"))
    error = failing(server)
    assert error.error_type is ErrorType.OOM_DURING_WARMUP
    assert error.hint.startswith("raise --mem-fraction")
    assert server.attempts == 1


def test_a_command_that_goes_to_the_background_is_told_not_to(bench: Bench) -> None:
    error = failing(bench.server(command_for=saying("started", "true")))
    assert error.error_type is ErrorType.SERVER_START_FAILED
    assert "ended by status 0 before it was ready" in error.message
    assert "stay in the foreground" in error.hint
    assert error.hint.endswith(f"; read {bench.log}")
