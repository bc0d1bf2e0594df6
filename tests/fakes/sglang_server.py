"""A stand-in for `python -m sglang.launch_server`: its endpoints, its log, its way to end, and its ways to fail.

    python tests/fakes/sglang_server.py --port N [--fault NAME]... [--compile] [any of SGLang's own flags]

It prints the log that sglang 0.5.16 wrote on an H200 (tests/data/server-*.log). With --compile it leaves in each
cache what it does not find there, as a cold server does, and then prints the cold log. The texts of its faults are
those of the libraries' own sources, which stand beside them. FAKE_FAULTS in the environment names faults, too: a
server's flags are part of a cache's key. NAME@1 is a fault of the server that sees GPU 1. While the file that FAKE_HOLD
names is there, it goes no further. The variables that FAKE_SHOWS names are said in its log. The program that
FAKE_COMPILER names is run for each missing file, with its name. FAKE_MIB is how many MiB it compiles beside that, in
files of one, never twice the same. FAKE_MOE_CONFIG is the config that it looks for where it finds none. Only the
standard library: it has to start fast.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
TRACE = 'Scheduler hit an exception: Traceback (most recent call last):\n  File "scheduler.py", line 4643, in run\n'
DIED = "Received sigquit from a child process. It usually means the child failed.\n"
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 94.50 GiB "
    "of which 1.25 GiB is free.\n"
)
TRITON_OOM = (
    # triton 3.6, third_party/nvidia/backend/driver.c
    '  File "/site/torch/_inductor/runtime/triton_heuristics.py", line 1871, in run\n'
    "RuntimeError: Triton Error [CUDA]: out of memory\n"
)
TOO_LITTLE = {"oom": OOM, "triton-oom": TRITON_OOM}
"""Of a server that has less memory than it wants, but not with a smaller fraction."""
LEFT_OUT = (
    # sglang/srt/model_executor/runner/base_runner.py
    "Transformers backend model reports it is not torch.compile compatible (e.g. dynamic rope scaling). Disabling "
    "torch.compile.\n"
)
NO_GRAPHS = (
    "Disabling auto-selected prefill CUDA graph: only 3.52 GiB is free after model/KV/eager-buffer allocation; at "
    "least 4.00 GiB is required for capture. Set an explicit prefill CUDA graph backend to override.\n"
)
FATAL = {
    # transformers/utils/hub.py
    "model-gone": "OSError: Incorrect path_or_model_id: '/models/gone'. Please provide either the path to a local "
    "directory or the repo_id of a model on the Hub.\n",
    # sh, run by ninja, run by flashinfer/jit/cpp_ext.py
    "no-nvcc": "RuntimeError: Ninja build failed. Ninja output:\n[1/4] /usr/local/cuda/bin/nvcc -c norm.cu -o "
    "norm/norm.cuda.o\nFAILED: norm/norm.cuda.o\n/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found\n",
    # cuda/std/__cccl/cuda_toolkit.h
    "old-headers": "RuntimeError: Ninja build failed. Ninja output:\ncuda_toolkit.h:41:8: error: #error "
    '"CUDA compiler and CUDA toolkit headers are incompatible, please check your include paths"\n',
    "disk-full": "RuntimeError: Ninja build failed. Ninja output:\nnvcc error   : '/tmp/x.ptx': No space left on "
    "device\nOSError: [Errno 28] No space left on device\n",
    # DeepGEMM csrc/jit/compiler.hpp and csrc/utils/exception.hpp
    "nvrtc": "NVRTC log: kernel.cu(3): error: identifier x is undefined\n"
    "RuntimeError: NVRTC error (csrc/jit/compiler.hpp:273): 6 (NVRTC_ERROR_COMPILATION)\n",
    "bad-kernel": 'RuntimeError: Assertion error (csrc/jit/compiler.hpp:237): false and "NVCC compilation failed"\n',
    # sglang/srt/entrypoints/engine.py
    "host-oom": "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9).\n",
    # sglang/srt/model_executor/pool_configurator.py
    "too-little": "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: "
    "mem_fraction_static=0.96\n",
    "oom-always": OOM,
}
UNFIT = (
    # triton 3.6, triton/runtime/errors.py
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 294912, Hardware limit: 232448. "
    "Reducing block sizes or `num_stages` may help.\n"
)
NOT_COMPILED = (
    # torch 2.11, and sglang/srt/model_executor/runner/decode_cuda_graph_runner.py
    '  File "/site/torch/_dynamo/convert_frame.py", line 1871, in __call__\n'
    '  File "/site/torch/_dynamo/symbolic_convert.py", line 1507, in next_instruction\n'
    "    assert self.instruction_pointer is not None\n"
    "torch._dynamo.exc.InternalTorchDynamoError: AssertionError: \n\nfrom user code:\n"
    '  File "/site/sglang/srt/layers/rotary_embedding/base.py", line 241, in forward_native\n'
    "    assert (\n"
    "Exception: Capture cuda graph failed: AssertionError: \n"
)
"""Of a server with torch.compile that does not start."""
CACHES = {
    # variable: (default below HOME, artifacts)
    "TRITON_CACHE_DIR": (".triton/cache", ["ABC/__grp__moe.json", "ABC/moe.cubin", "ABC/moe.json"]),
    "FLASHINFER_WORKSPACE_BASE": (
        "",
        [f".cache/flashinfer/0.6.14/90a/cached_ops/norm/{name}" for name in ("norm.cuda.o", "norm.so")],
    ),
    "SGLANG_DG_CACHE_DIR": (
        ".cache/deep_gemm",
        [f"cache/kernel.sm90_fp8_gemm_1d2d.0123/{name}" for name in ("kernel.cu", "kernel.cubin")],
    ),
    "TVM_FFI_CACHE_DIR": (".cache/tvm-ffi", ["sgl_kernel_jit_norm_9f/sgl_kernel_jit_norm.so"]),
    "CUDA_CACHE_PATH": (".nv/ComputeCache", ["5/d/5d1f"]),
    "TORCHINDUCTOR_CACHE_DIR": (".inductor", ["ab/cabsum.py", "fxgraph/zz/key/graph"]),
}
ROPE = ".cache/flashinfer/0.6.14/90a/cached_ops/rope/rope.so"
SAYS_SO = {
    "FLASHINFER_WORKSPACE_BASE": ("FLASHINFER_JIT_VERBOSE", "[1/2] nvcc -c norm.cu -o norm/norm.cuda.o\n"),
    "SGLANG_DG_CACHE_DIR": ("DG_JIT_PRINT_COMPILER_COMMAND", "Running NVCC command: cd tmp && nvcc kernel.cu -cubin\n"),
}


def say(text: str | bytes) -> None:
    os.write(1, text.encode() if isinstance(text, str) else text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--mem-fraction-static", type=float, default=0.9)
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--enable-torch-compile", action="store_true")
    parser.add_argument("--torch-compile-max-bs", type=int, default=32)
    parser.add_argument("--api-key")
    return parser.parse_known_args()[0]


def faults_here() -> list[str]:
    named = [name.partition("@") for name in os.environ.get("FAKE_FAULTS", "").split()]
    return [name for name, _, gpu in named if gpu in ("", os.environ.get("CUDA_VISIBLE_DEVICES"))]


def decode_graphs(args: argparse.Namespace, faults: frozenset[str]) -> list[str]:
    """What torch.compile leaves, of the batches that decode captures: nine graphs each, as of a dense model."""
    if not args.enable_torch_compile or not faults.isdisjoint({"no-decode-graphs", "leaves-compile-out"}):
        return []
    captured = (1, 2, 4, 8, 12, *range(16, 257, 8))  # as the recorded log has them
    parts = ("", *(f".{part}" for part in range(1, 9)))
    start = f"-{os.getpid()}" if "fresh-graphs" in faults else ""
    names = [f"decode{size}{part}" for size in captured if size <= args.torch_compile_max_bs for part in parts]
    return [f"{place}{name}{start}/graph" for name in names for place in ("fxgraph/de/", "aotautograd/")]


def fill_caches(faults: frozenset[str], graphs: list[str]) -> bool:
    """Writes what is missing, as a compiler would. Returns whether anything was."""
    missing = False
    more = {
        "FLASHINFER_WORKSPACE_BASE": [ROPE] if "wants-more" in faults or proof_wants_more() else [],
        "TORCHINDUCTOR_CACHE_DIR": graphs,
        "TRITON_CACHE_DIR": [f"BIG{number:02}/moe.cubin" for number in range(int(os.environ.get("FAKE_MIB", "0")))],
    }
    for variable, (default, usual) in CACHES.items():
        names = [*usual, *more.get(variable, [])]
        root = Path(os.environ.get(variable) or Path(os.environ["HOME"], default))
        compiled = False
        for name in names:
            path = root / name
            if path.is_file():
                if b"DEADLY" in path.read_bytes():
                    die_of(path)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if compiler := os.environ.get("FAKE_COMPILER"):
                subprocess.run([compiler, name], check=True)
            path.write_bytes(os.urandom(1 << 20) if name.startswith("BIG") else f"made for {name}\n".encode() * 64)
            compiled = True
        switch, line = SAYS_SO.get(variable, ("", ""))
        if compiled and os.environ.get(switch) == "1":
            say(line)
        missing |= compiled
    return missing


def die_of(path: Path) -> None:
    """Ends as the real one does of what is damaged there, or cannot be launched. The texts are the libraries' own."""
    if b"CRASHES" in path.read_bytes():  # machine code that is at fault says nothing
        os.kill(os.getpid(), signal.SIGSEGV)
    frames = {
        # triton 3.6, compiler/compiler.py and third_party/nvidia/backend/driver.c
        "triton": ("triton/runtime/jit.py", "triton/compiler/compiler.py"),
        # flashinfer 0.6.14, jit/core.py; tvm_ffi, module.py
        "flashinfer": ("flashinfer/norm/__init__.py", "flashinfer/jit/core.py", "tvm_ffi/module.py"),
        # sglang 0.5.16, jit_kernel/utils.py
        "sglang_jit": ("sglang/jit_kernel/norm.py", "sglang/jit_kernel/utils.py", "tvm_ffi/module.py"),
        "deep_gemm": ("sglang/srt/layers/deep_gemm_wrapper/entrypoint.py", "deep_gemm/__init__.py"),
        "torchinductor": ("torch/_inductor/codecache.py", str(path)),
    }
    failed = "RuntimeError: Check failed: (lib_handle_ != nullptr) is false: Failed to load dynamic shared library"
    library = f"{failed} {path}"
    said = {
        "triton": "RuntimeError: Triton Error [CUDA]: device kernel image is invalid\n",
        "flashinfer": f"{library} {path}: file too short\n",
        "sglang_jit": f"{library} {path}: invalid ELF header\n",
        # DeepGEMM csrc/jit/handle.hpp
        "deep_gemm": "RuntimeError: CUDA driver error (csrc/jit/handle.hpp:81): 200 (CUDA_ERROR_INVALID_IMAGE, device "
        "kernel image is invalid)\n",
        "torchinductor": "SyntaxError: source code string cannot contain null bytes\n",
    }
    cache = next(name for name in frames if f"/{name}/" in str(path))
    places = [name if name.startswith("/") else f"/site/{name}" for name in frames[cache]]
    fail("".join(f'  File "{place}", line 1, in call\n    call()\n' for place in places) + said[cache], 1)


def proof_wants_more() -> bool:
    """Whether this server is a proof's, and such a one is to need what no other does."""
    wish = Path(os.environ.get("FAKE_HOLD", "/nowhere")).with_name("proof-wants-more")
    return "SGLANG_CRASH_ON_JIT_COMPILE" in os.environ and wish.exists()


def daemon() -> None:
    """A process that neither its parent nor a session ties to us."""
    program = "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(600)\n"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


class Handler(BaseHTTPRequestHandler):
    """SGLang's endpoints, as far as rayprep asks them."""

    up = threading.Event()
    faults: frozenset[str] = frozenset()
    api_key: str | None = None
    counts = dict.fromkeys(("prompt", "generation", "requests", "batches"), 0)
    lock = threading.Lock()

    def answer(self, status: int, body: object = None) -> None:
        data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: the recorded log has its own."""

    def do_GET(self) -> None:
        model = {"model_path": "/models/qwen3-moe-fp8-4l"}
        if self.path == "/health":
            self.answer(200 if self.up.is_set() else 503)
        elif self.path == "/metrics":
            names = {"prompt": "prompt_tokens", "generation": "generation_tokens", "requests": "num_requests"}
            self.answer(200, "".join(f"sglang:{name}_total {self.counts[key]}.0\n" for key, name in names.items()))
        elif self.path in ("/model_info", "/v1/models"):
            self.answer(200, model if self.path == "/model_info" else {"object": "list", "data": [{"id": model}]})
        else:
            self.answer(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.api_key and self.headers["Authorization"] != f"Bearer {self.api_key}":
            self.answer(401, {"error": "Unauthorized"})
        elif "hangs" in self.faults:
            time.sleep(600)
        elif "dies-on-request" in self.faults:
            say(TRACE + "RuntimeError: CUDA error: an illegal memory access was encountered\n" + DIED)
            os.kill(os.getpid(), signal.SIGKILL)
        elif "errors" in self.faults:
            self.answer(400, {"error": {"message": "The input is longer than the model's context length"}})
        elif "fails" in self.faults:
            self.answer(500, "Internal Server Error")
        else:
            self.generate(body["input_ids"], body["sampling_params"]["max_new_tokens"])

    def generate(self, prompts: list[list[int]], new: int) -> None:
        results = [
            {
                "output_ids": [1] * new,
                "meta_info": {"prompt_tokens": len(ids), "completion_tokens": new, "cached_tokens": 0},
            }
            for ids in prompts
        ]
        with self.lock:
            self.counts["requests"] += len(results)
            self.counts["generation"] += new * len(results)
            self.counts["prompt"] += sum(map(len, prompts))
        self.answer(200, results)


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def refuse_half_an_entry() -> None:
    """Triton believes its group file and does not look for the cubin (triton/compiler/compiler.py, CompiledKernel)."""
    entry = Path(os.environ.get("TRITON_CACHE_DIR") or Path(os.environ["HOME"], ".triton/cache"), "ABC")
    if (entry / "__grp__moe.json").exists() and not (entry / "moe.cubin").exists():
        fail("KeyError: \"Unknown key: 'cubin'\"\n", 1)


def fail(text: str, code: int) -> None:
    say(TRACE + text + DIED)
    sys.exit(code)


def configs_home() -> Path:
    return Path(os.environ.get("SGLANG_MOE_CONFIG_DIR", "/none")) / "configs" / "triton_3_6_0"


def configs_there() -> list[Path]:
    return sorted(configs_home().glob("*.json"))


def asks_too_much(config: Path) -> bool:
    """Whether a kernel wants more shared memory than there is, as in the stand-in of SGLang's (tests/fakes/moe_lib)."""
    up, down = (
        json.loads(path.read_text() or "{}") if path.exists() else {}
        for path in (config, config.with_name(f"{config.stem}_down.json"))
    )
    for size, entry in up.items():
        twin = down[min(down, key=lambda other: abs(int(other) - int(size)))] if down else entry
        if entry.get("BLOCK_SIZE_M", 0) * max(entry.get("BLOCK_SIZE_N", 0), twin.get("BLOCK_SIZE_N", 0)) >= 128 * 256:
            return True
    return False


def run_out_of_resources(faults: frozenset[str], log: bytes) -> None:
    """Dies as sglang 0.5.16 did on an H200, of a kernel that wants more shared memory than there is."""
    if "out-of-resources" not in faults and not any(map(asks_too_much, configs_there())):
        return
    say(log[: log.index(b"\n", log.index(b"Capture target prefill CUDA graph begin.")) + 1])
    say((DATA / "server-out-of-resources.log").read_bytes())
    os.kill(os.getpid(), signal.SIGKILL)


def before_ready(args: argparse.Namespace, faults: frozenset[str], log: bytes) -> None:
    pool = log.index(b"Memory pool end")
    while os.environ.get("FAKE_HOLD") and Path(os.environ["FAKE_HOLD"]).exists():
        time.sleep(0.05)
    if "dies-at-start" in faults:
        sys.exit(3)
    if "litters" in faults:
        left = Path(os.environ["HOME"], ".cache", "somebody", "kernel.bin")
        left.parent.mkdir(parents=True)
        left.write_bytes(b"compiled where no variable leads")
    if "daemons" in faults:
        daemon()
        daemon()
    say(log[:pool])
    if "not-utf8" in faults:
        say(b"\xff\xfe\xc3(\n" * 100)
    if "floods" in faults:
        for _ in range(40):
            say((b"x" * 99 + b"\n") * 10_000 + b"y" * 100_000)  # 44 MB, with lines that do not end
        say("\n")
    if "no-graphs" in faults and args.mem_fraction_static > 0.93:
        say(NO_GRAPHS)
    for name in faults & TOO_LITTLE.keys() if args.mem_fraction_static > 0.93 else ():
        fail(TOO_LITTLE[name], 1)
    for name in faults & FATAL.keys():
        fail(FATAL[name], 1)
    read_moe_configs(faults)
    run_out_of_resources(faults, log[pool:])
    say(log[pool:])


def read_moe_configs(faults: frozenset[str]) -> None:
    there = configs_there()
    for config in () if "no-moe-config" in faults else there:
        say(f"[2026-11-21 16:39:02] Using MoE kernel config from {config}.\n")
    if not there and "FAKE_MOE_CONFIG" in os.environ:
        missed = f"Config file not found at {configs_home() / os.environ['FAKE_MOE_CONFIG']}, you can create them with"
        say(f"[2026-11-21 16:39:02] Using default MoE kernel config. Performance might be sub-optimal! {missed} it\n")


def end_by_term(*_: object) -> None:
    """As SGLang: it drains, and kills itself hard."""
    say("SIGTERM received. signum=None frame=None. Draining requests and shutting down...\n")
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    args = parse()
    faults = frozenset([*args.fault, *faults_here()])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in faults else end_by_term)
    if args.compile:
        refuse_half_an_entry()
    for name in os.environ.get("FAKE_SHOWS", "").split():
        say(f"{name}={os.environ.get(name)}\n")
    if "no-torch-compile" in faults and args.enable_torch_compile:
        fail(NOT_COMPILED, 1)
    if "leaves-compile-out" in faults:
        say(LEFT_OUT)
    cold = args.compile and fill_caches(faults, decode_graphs(args, faults))
    log = (DATA / f"server-{'cold' if cold else 'warm'}.log").read_bytes()
    listening, ready = log.index(b"INFO:     Uvicorn running"), log.index(b"The server is fired up")
    before_ready(args, faults, log[: log.rindex(b"\n", 0, listening) + 1])
    Handler.faults, Handler.api_key = faults, args.api_key
    try:
        server = Listener((args.host, args.port), Handler)
    except OSError as error:
        # uvicorn/server.py, which gets its text from asyncio/base_events.py
        where = f"address ('{args.host}', {args.port}): address already in use"
        say(f"ERROR:    [Errno {error.errno}] error while attempting to bind on {where}\n")
        sys.exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(log[log.rindex(b"\n", 0, listening) + 1 : log.rindex(b"\n", 0, ready) + 1])
    if "never-ready" in faults:
        time.sleep(600)
    say(log[log.rindex(b"\n", 0, ready) + 1 : log.index(b"\n", ready) + 1])
    Handler.up.set()
    if "dies-when-ready" in faults:
        time.sleep(0.5)
        fail("RuntimeError: CUDA error: an illegal memory access was encountered\n", 1)
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(600)


if __name__ == "__main__":
    main()
