"""What is read off a server's log: off real ones, and off the texts of the libraries' sources."""

import re
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.base.secrets import redacted_text
from rayprep.sglang.failures import is_accident, telling_line, torch_compile_failure
from rayprep.sglang.log import Hint, LogReader, classify_failure, hint_of, jit_events

DATA = Path(__file__).parent.parent / "data"
_ASSERTED = "Assertion error (deep_jit/x.hpp:1): exit_code == 0"
"""How DeepGEMM 0.2 begins."""
READY = "[2026-11-21 16:40:17] The server is fired up and ready to roll!"


def pieces(name: str) -> list[str]:
    """A recorded log as the reader is given it."""
    return re.split(r"[\r\n]+", (DATA / name).read_bytes().decode())


def read(*lines: str) -> LogReader:
    reader = LogReader()
    for line in lines:
        reader.hear(line)
    return reader


@pytest.mark.parametrize("name", ["server-cold.log", "server-warm.log"])
def test_a_real_log(name: str) -> None:
    reader = read(*pieces(name))
    assert [str(shape) for shape in reader.gemm_shapes] == [
        "GEMM_NT_F8F8BF16 N=5120 K=2048 groups=1",
        "GEMM_NT_F8F8BF16 N=2048 K=4096 groups=1",
    ]
    assert (reader.args.attention_backend, reader.args.sampling_backend) == ("flashinfer", "flashinfer")
    assert (reader.args.moe_runner_backend, reader.args.decode_attention_backend) == ("auto", None)
    assert (reader.args.chunked_prefill_size, reader.args.decode_max_batch) == (8192, 256)
    assert (reader.args.decode_batches[:5], reader.args.decode_batches[-1]) == ((1, 2, 4, 8, 12), 256)
    assert (reader.args.context_length, reader.args.max_running_requests) == (40960, 4096)
    assert reader.args.max_total_tokens == 10471755
    assert reader.memory_pool_ended
    assert reader.ready
    assert not (reader.out_of_memory or reader.lost_port(30000, dead=True) or reader.wants_more_memory)
    assert reader.hint == Hint(text="capturing CUDA graph", done=36, total=36)
    assert reader.tail[-1].endswith("pid=1125") or reader.tail[-1].endswith("pid=2545")


def test_a_real_log_of_the_newest_release() -> None:
    """Of 0.5.23 on an H200, without the bars: nothing is compiled, and decode batches are named at the end."""
    reader = read(*pieces("server-warm-sglang-0.5.23.log"))
    args = reader.args
    assert (args.attention_backend, args.sampling_backend, args.moe_runner_backend) == (
        "flashinfer",
        "flashinfer",
        "auto",
    )
    assert (args.chunked_prefill_size, args.decode_max_batch, args.max_running_requests) == (8192, 256, 4096)
    assert (args.decode_batches[:5], args.decode_batches[-1]) == ((1, 2, 4, 8, 12), 256)
    assert (reader.memory_pool_ended, reader.ready, reader.jit_events) == (True, True, [])
    assert len(reader.moe_configs.used) == 1


def test_the_arguments_that_the_newest_release_prints() -> None:
    """By 0.5.23, which prints a dict, with secrets beside one another that have quotes of both kinds."""
    (line,) = pieces("server-args-sglang-0.5.23.log")[:1]
    reader = read(line)
    args = reader.args
    assert (args.attention_backend, args.sampling_backend, args.moe_runner_backend) == ("fa3", "flashinfer", "auto")
    assert (args.prefill_attention_backend, args.decode_attention_backend) == (None, None)
    assert (args.chunked_prefill_size, args.decode_max_batch) == (8192, 512)
    shown = redacted_text(line)
    assert "'ssl_keyfile_password': ***, 'enable_ssl_refresh'" in shown
    assert "'api_key': ***, 'admin_api_key': ***, 'served_model_name'" in shown
    assert not [secret for secret in ("it\\'s", "secret'", "plain-key", "a,b") if secret in shown]


def test_arguments_that_are_no_literals_are_read() -> None:
    args = read("server_args={'device': <Device.CUDA: 1>, 'sampling_backend': 'pytorch', 'tp_size': 4").args
    assert args.sampling_backend == "pytorch"


def test_the_batches_of_decode_are_told_before_or_after_their_capture() -> None:
    begun = "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, bs=[1, 2, 4], avail mem=5 GB"
    ended = "Capture target decode CUDA graph end. bs=[1, 2, 4], elapsed=3.44 s, mem usage=0.54 GB, avail mem=5 GB."
    for line in (begun, ended):
        assert read(line).args.decode_batches == (1, 2, 4)


def test_a_real_warm_log_has_no_event() -> None:
    """Although it says `Try DeepGEMM JIT Compiling`, as a cold one does."""
    assert [event for line in pieces("server-warm.log") if (event := jit_events(line))] == []


def test_the_progress_of_a_real_cold_start() -> None:
    reader, hints = LogReader(), []
    for line in pieces("server-cold.log"):
        reader.hear(line)
        if reader.hint and reader.hint.text not in hints:
            hints.append(reader.hint.text)
    assert hints == ["loading weights", "capturing CUDA graph", "compiling GEMM variants"]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            "DeepGEMM warmup:   5%|▍         | 769/16384 [00:27<06:20, 41.01it/s]\x1b[A",
            ("compiling GEMM variants", 769, 16384),
        ),
        (
            "Capturing prefill shape (num_tokens=512 avail_mem=44.16 GB):  34%|###4| 20/58 [00:42<01:20,  2.1s/it]",
            ("capturing CUDA graph", 20, 58),
        ),
        ("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:00]", ("loading weights", 2, 4)),
        ("Multi-thread loading shards:  50% Completed | 1/2 [00:00<00:00]", None),
        ("ninja: Entering directory `/c/cached_ops/norm'", ("loading norm", None, None)),
        ("[2/4] /usr/bin/nvcc -c x.cu -o sampling/sampling.cuda.o", ("compiling sampling", 2, 4)),
        ("[2026-11-21 16:35:54] Load weight begin. avail mem=139.09 GB", ("loading weights", None, None)),
        ("[2026-11-21 16:35:54] Init torch distributed begin.", None),
    ],
)
def test_hints(line: str, hint: tuple[str, int | None, int | None] | None) -> None:
    assert hint_of(line) == (Hint(text=hint[0], done=hint[1], total=hint[2]) if hint else None)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "Running NVCC command: cd /c/tmp && nvcc /c/tmp/1/kernel.cu -cubin -o k",
            "DeepGEMM compiled a kernel with nvcc",
        ),
        (
            "Running command: cd /c/t/1 && /x/nvcc /c/t/1/kernel.cu --cubin --output-file /c/t/1/kernel.cubin -O3",
            "DeepGEMM compiled a kernel with nvcc",
        ),
        ("Running command: cd /c/tmp/1 && /x/cuobjdump --dump-sass /c/tmp/1/kernel.cubin", None),
        (
            "x Triton kernel 'fused_moe_kernel' took 1.94 s to compile after serving started. Serving-time compilation",
            "Triton compiled fused_moe_kernel while serving",
        ),
        ("Triton kernel 'k' device-loaded after serving started (free device mem: 0.50 GiB). Pre-load it", None),
        ("Compiling JIT runtime with NVRTC options: -std=c++20 ", "DeepGEMM compiled a kernel with NVRTC"),
        ("[1/2] nvcc -c a.cu -o /c/cached_ops/norm/norm.cuda.o", "ninja built norm/norm.cuda.o"),
        ("[2/2] c++ norm/norm.cuda.o -shared -o norm/norm.so", "ninja built norm/norm.so"),
        ("x Cached JIT module sgl_kernel_jit_norm failed to load; rebuilding.", "sglang rebuilt sgl_kernel_jit_norm"),
        ("ninja: no work to do.", None),
        ("Entering DeepGEMM JIT Pre-Compile session. It may take a long time", None),
        ("[2026-11-21 16:40:18] INFO: 127.0.0.1 - POST /generate -o x", None),
    ],
)
def test_events(line: str, event: str | None) -> None:
    assert jit_events(line) == event


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", ErrorType.OOM_DURING_WARMUP),
        ("Exception: Capture cuda graph failed: CUDA out of memory", ErrorType.OOM_DURING_WARMUP),
        ("Exception: Capture cuda graph failed: Triton Error [CUDA]: out of memory", ErrorType.OOM_DURING_WARMUP),
        ("RuntimeError: CUDA driver error: out of memory", ErrorType.OOM_DURING_WARMUP),
        ("torch.AcceleratorError: CUDA error: out of memory", ErrorType.OOM_DURING_WARMUP),
        (
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x",
            ErrorType.OOM_DURING_WARMUP,
        ),
        ("RuntimeError: Triton Error [CUDA]: invalid argument", ErrorType.SERVER_START_FAILED),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", ErrorType.OOM_DURING_WARMUP),
        ("Rank 0 scheduler died during initialization (exit code: -9).", ErrorType.OOM_DURING_WARMUP),
        ("Rank 0 scheduler died during initialization (exit code: 1).", ErrorType.SERVER_START_FAILED),
        ("RuntimeError: NVRTC error (x.hpp:1): 6 (NVRTC_ERROR_COMPILATION)", ErrorType.NVRTC_COMPILE_FAILED),
        ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", ErrorType.TOOLCHAIN_MISMATCH),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda'", ErrorType.TOOLCHAIN_MISMATCH),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", ErrorType.TOOLCHAIN_MISMATCH),
        ("#error CUDA compiler and CUDA toolkit headers are incompatible", ErrorType.TOOLCHAIN_MISMATCH),
        ("Assertion error (c.hpp:1): std::filesystem::exists(nvcc_path)", ErrorType.TOOLCHAIN_MISMATCH),
        (f"{_ASSERTED}: NVCC version must be at least 12.9", ErrorType.TOOLCHAIN_MISMATCH),
        (f"{_ASSERTED}: NVCC compiler is not executable: /x/bin/nvcc", ErrorType.TOOLCHAIN_MISMATCH),
        (f"{_ASSERTED}: failed to parse NVCC version from:", ErrorType.TOOLCHAIN_MISMATCH),
        ("Assertion error (b.hpp:1): not home_path.empty() and std::filesystem", ErrorType.TOOLCHAIN_MISMATCH),
        (f"{_ASSERTED}: command failed with exit code 2:", ErrorType.COMPILE_FAILED),
        (f"{_ASSERTED}: NVCC did not produce a valid CUBIN: /c/k/kernel.cubin", ErrorType.COMPILE_FAILED),
        ("Panic error (kernel.hpp:55): missing CUDA CUBIN: /c/k/kernel.cubin", ErrorType.COMPILE_FAILED),
        ("x.cuh:3:10: fatal error: cuda_runtime.h: No such file or directory", ErrorType.TOOLCHAIN_MISMATCH),
        ("OSError: [Errno 28] No space left on device", ErrorType.INSUFFICIENT_DISK),
        ("RuntimeError: Ninja build failed.", ErrorType.COMPILE_FAILED),
        ("Corrupted JIT cache directory (missing kernel.cu or kernel.cubin): x", ErrorType.COMPILE_FAILED),
        ("PermissionError: [Errno 13] Permission denied: '/c/x'", ErrorType.PERMISSIONS_UNEXPECTED),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/models/x/config.json'",
            ErrorType.SERVER_START_FAILED,
        ),
    ],
)
def test_failures(line: str, expected: ErrorType) -> None:
    assert classify_failure([line], 1) is expected
    assert classify_failure(read("Scheduler hit an exception: Traceback", line).signs, 1) is expected


def test_a_cause_decides_before_its_consequences() -> None:
    lines = ["RuntimeError: Ninja build failed.", "nvcc fatal", "cc: error: No space left on device", READY]
    assert classify_failure(lines, 1) is ErrorType.INSUFFICIENT_DISK
    assert telling_line(lines, ErrorType.INSUFFICIENT_DISK) == "cc: error: No space left on device"


def test_a_death_without_a_word_depends_on_when_it_came() -> None:
    assert classify_failure([], 3) is ErrorType.SERVER_START_FAILED
    assert classify_failure([READY], 137) is ErrorType.SERVER_CRASHED
    assert classify_failure([], 127) is ErrorType.TOOLCHAIN_MISMATCH


def test_real_logs_have_no_sign_but_that_they_were_ready() -> None:
    for name in ("server-cold.log", "server-warm.log"):
        assert [READY[22:] in sign for sign in read(*pieces(name)).signs] == [True]


def test_the_telling_line_is_the_last_exception() -> None:
    lines = ["ValueError: first", "  at x", "OSError: /models/x does not exist", "Received sigquit"]
    assert telling_line(lines, ErrorType.SERVER_START_FAILED) == "OSError: /models/x does not exist"
    assert telling_line(["nothing"], ErrorType.SERVER_START_FAILED) is None


@pytest.mark.parametrize(
    "said",
    [
        "launch_server.py: error: unrecognized arguments: --mem-fracton-static 0.8",
        "launch_server.py: error: argument --mem-fraction-static: invalid float value: 'lots'",
        "python -m sglang.launch_server: error: ambiguous option: --disable could match --disable-radix-cache",
    ],
)
def test_a_mistyped_flag_is_told(said: str) -> None:
    signs = read("usage: launch_server.py [-h] --model-path MODEL_PATH", said).signs
    assert telling_line(signs, ErrorType.SERVER_START_FAILED) == said


def test_what_is_kept_is_bounded() -> None:
    reader = read(*(f"ValueError: {'x' * 100_000} {i}" for i in range(300)))
    assert len(reader.signs) == 100
    assert len(reader.tail) == 40
    assert max(map(len, (*reader.signs, *reader.tail))) <= 500
    noisy = read(*(f"[{i}/9000] nvcc -c x.cu -o norm/{i}.o" for i in range(3000)))
    assert len(noisy.jit_events) == 1000
    assert noisy.jit_events[-1] == "ninja built norm/999.o"


def test_no_flood_hides_the_cause() -> None:
    harmless = [f"RetryError: harmless {i}" for i in range(250)]
    cause = "OSError: [Errno 28] No space left on device"
    for lines in ([*harmless, cause], [cause, *harmless], [*harmless, cause, *harmless]):
        reader = read(*lines, READY, *harmless)
        error_type = classify_failure(reader.signs, 1)
        assert error_type is ErrorType.INSUFFICIENT_DISK
        assert telling_line(reader.signs, error_type) == cause
    assert classify_failure(read(READY, *harmless).signs, 1) is ErrorType.SERVER_CRASHED
    assert telling_line(read(*harmless, "OSError: the last").signs, ErrorType.SERVER_CRASHED) == "OSError: the last"


@pytest.mark.parametrize(
    ("line", "while_it_lives", "when_dead"),
    [
        (
            "ERROR: [Errno 98] while attempting to bind on address ('::', 30999, 0, 0): address already in use",
            1,
            1,
        ),
        ("ERROR: [Errno 98] error while attempting to bind on address ('0.0.0.0', 9400): address already in use", 0, 0),
        ("[2026-11-21 16:40:17] OSError: [Errno 98] Address already in use", 0, 1),
        ("[W1121 socket.cpp:1234] failed to bind to [::]:30999 (errno: 98 - Address already in use).", 1, 1),
        ("[W1121 socket.cpp:3099] server socket: port: 29500, code: -98, message: address already in use", 0, 0),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5555')", 0, 0),
        ("RuntimeError: port 30999 is odd", 0, 0),
    ],
)
def test_a_port_is_lost_by_a_line_that_names_it_or_by_one_that_kills(
    line: str, while_it_lives: int, when_dead: int
) -> None:
    reader = read(line)
    assert reader.lost_port(30999, dead=False) == bool(while_it_lives)
    assert reader.lost_port(30999, dead=True) == bool(when_dead)


def test_no_key_that_the_server_prints_is_kept() -> None:
    """A result shows the last lines of a log that failed."""
    reader = read("[t] server_args=ServerArgs(api_key='sk-1')", "RuntimeError: bad ServerArgs(admin_api_key='sk-2')")
    assert "sk-" not in " ".join([*reader.tail, *reader.signs])
    assert len(reader.tail) == 2


TRACE = (
    '  File "/site/torch/_dynamo/convert_frame.py", line 1871, in __call__',
    "    assert self.instruction_pointer is not None",
    "torch._dynamo.exc.InternalTorchDynamoError: AssertionError: ",
    '  File "/site/sglang/srt/layers/rotary_embedding/base.py", line 241, in forward_native',
)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((*TRACE, "Exception: Capture cuda graph failed: AssertionError: "), "Exception: Capture cuda graph failed"),
        (
            ('  File "/site/sglang/srt/model_executor/runner.py", line 9, in capture', *TRACE),
            "torch._dynamo.exc.InternalTorchDynamoError: AssertionError: in forward_native"
            " (sglang/srt/layers/rotary_embedding/base.py:241)",
        ),
        ((TRACE[0], TRACE[-1]), "an error without a message in forward_native (sglang/srt/layers/rotary"),
        (("torch._dynamo.exc.Unsupported: Attempted to call function marked as skipped",), "torch._dynamo.exc.Unsup"),
        ((TRACE[0], "AssertionError"), "an error without a message"),
        (("ValueError: no such model",), None),
    ],
)
def test_a_failure_of_torch_compile_is_told_with_its_line(lines: tuple[str, ...], said: str | None) -> None:
    reader = read(*lines)
    got = torch_compile_failure(reader.signs)
    assert got is None if said is None else got is not None and got.startswith(said)
    assert classify_failure(reader.signs, 1) is ErrorType.SERVER_START_FAILED


def test_a_full_disk_says_more_than_what_was_compiled_then() -> None:
    reader = read(*TRACE, "OSError: [Errno 28] No space left on device")
    assert classify_failure(reader.signs, 1) is ErrorType.INSUFFICIENT_DISK


def test_a_tuning_choice_that_does_not_fit_a_gpu_is_no_lack_of_memory() -> None:
    said = (
        "No valid triton configs. OutOfMemoryError: out of resource: triton_mm Required: 294912 Hardware limit:232448"
    )
    reader = read("Runtime error during autotuning: ", f"{said} Reducing block sizes or `num_stages` may help.. ")
    assert not reader.out_of_memory
    assert classify_failure(reader.signs, 1) is ErrorType.SERVER_START_FAILED
    assert read("torch.OutOfMemoryError: CUDA out of memory.").out_of_memory
    assert read("torch.cuda.OutOfMemoryError: HIP").out_of_memory
    ignored = read("Runtime error during autotuning: ", "Triton Error [CUDA]: out of memory. ", "Ignoring this choice.")
    assert not ignored.out_of_memory
    assert read("RuntimeError: Triton Error [CUDA]: out of memory").out_of_memory


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", True),
        ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690", True),
        ("concurrent.futures.process.BrokenProcessPool: a process was terminated abruptly", True),
        ("RuntimeError: worker was killed by signal: SIGTERM", True),
        ("OSError: [Errno 24] Too many open files: '/cache/fxgraph'", True),
        ("MemoryError: ", True),
        ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients", True),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("RuntimeError: CUDA driver error: out of memory", True),
        ("RuntimeError: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("RuntimeError: std::bad_alloc", True),
        ("torch._inductor.exc.InductorError: RuntimeError: `ptxas` failed with error code -9", True),
        ("RuntimeError: can't start new thread", True),
        ("torch.distributed.DistBackendError: Connection reset by peer", True),
        ("torch.distributed.DistNetworkError: failed to listen. port: 29500, name: EADDRINUSE", True),
        ("RuntimeError: unable to mmap 16 bytes: Cannot allocate memory (12)", True),
        ("EOFError: Ran out of input", True),
        ("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)", True),
        ("_pickle.UnpicklingError: pickle data was truncated", True),
        ("torch._inductor.exc.InductorError: RuntimeError: `ptxas` failed with error code 1", False),
        ("TypeError: connection_reset() takes 1 argument", False),
        ("AttributeError: 'NoneType' object has no attribute 'bad_allocation'", False),
        ("torch._dynamo.exc.Unsupported: reconstruct: MyEOFErrorHandler", False),
        ("Exception: Capture cuda graph failed: AssertionError", False),
        ("torch._dynamo.exc.Unsupported: Observed exception", False),
        ("UnboundLocalError: local variable 'x' referenced before assignment", False),
        ("AttributeError: module has no attribute '__signature__'", False),
        ("No valid triton configs. OutOfMemoryError: out of resource: triton_mm Required: 294912", False),
    ],
)
def test_what_may_not_come_again_says_nothing_of_the_flags(line: str, passes: bool) -> None:
    assert is_accident(line) is passes


@pytest.mark.parametrize(
    "line",
    [
        "Capture target decode CUDA graph begin. bs=[1840 192]",
        "Capture target decode CUDA graph begin. bs=[, ,]",
        "Try DeepGEMM JIT Compiling for <GEMM> N={}, K=1, num_groups=1",
        "max_total_num_tokens={}, chunked_prefill_size=-{}, max_running_requests={}, context_len={}",
        "server_args=ServerArgs(chunked_prefill_size={}, cuda_graph_config=CudaGraphConfig(decode=PhaseConfig("
        "backend='full', max_bs={}",
        "Capturing batches (bs=1): | 1/{} [",
        "DeepGEMM warmup: | {}/1 [",
        "Loading safetensors checkpoint shards: 50% | {}/2 [",
        "[1/{}] nvcc -o norm/norm.o",
    ],
)
def test_numbers_that_no_server_means_are_not_read(line: str) -> None:
    reader = read(line.replace("{}", "9" * 5000))
    assert (reader.args, reader.gemm_shapes, reader.hint) == (LogReader().args, [], None)
