"""What the lines of SGLang's log say: how far a server is, what it uses, what it compiles, and why it failed.

The log is what the processes of one server wrote to one file, so a line can be a piece of a progress bar (tqdm ends
those with a carriage return) with a message of another process right behind it: nothing here is anchored to the
start of a line unless its writer ends the line before, too.

Where releases word a thing differently, each wording is read, whatever the release.

Sources: logs of sglang 0.5.16 recorded on an H200; the texts of 0.5.16 to 0.5.23 in sglang/srt (entrypoints,
model_executor, layers/deep_gemm_wrapper, layers/moe, utils/triton_load_watch.py), sglang/jit_kernel and sglang/kernels
(utils/compile.py), flashinfer/jit/cpp_ext.py, tvm_ffi/cpp/extension.py, DeepGEMM's csrc/jit/compiler.hpp (0.1) and
include/deep_jit/utils/command.hpp (0.2).
"""

import re
from collections import deque

from rayprep.base.records import Record
from rayprep.base.secrets import redacted_text
from rayprep.sglang.death import CAPTURE_BAR, Death, DeathReader
from rayprep.sglang.failure_signs import OUT_OF_MEMORY
from rayprep.sglang.failures import (
    GENERAL,
    PLACE,
    READY,
    classify_failure,
    sign_of,
    wants_more_memory,
)
from rayprep.sglang.gemm_shapes import GemmShape
from rayprep.sglang.moe_config_lines import MoeConfigs, heard

__all__ = ["Hint", "LogReader", "ResolvedArgs", "classify_failure", "hint_of", "jit_events"]

MAX_PIECE = 32_768
"""Characters of a line that are looked at; the longest that SGLang writes, its arguments, has about 20,000."""
TAIL_LINES = 40
_MAX_GENERAL = 100
MAX_EVENTS = 1000
_SHOWN = 500


class Hint(Record):
    """How far a server is. `done` of `total` where the log says so."""

    text: str
    done: int | None = None
    total: int | None = None


class ResolvedArgs(Record):
    """What the server made of its arguments. None where its log does not say."""

    attention_backend: str | None = None
    prefill_attention_backend: str | None = None
    decode_attention_backend: str | None = None
    sampling_backend: str | None = None
    moe_runner_backend: str | None = None
    chunked_prefill_size: int | None = None
    decode_max_batch: int | None = None
    """The largest batch that decode CUDA graphs are captured for."""
    decode_batches: tuple[int, ...] = ()
    """All of them, once it captures them (from 0.5.22 on: has captured them)."""
    context_length: int | None = None
    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    """Tokens that the KV cache holds."""


_N = r"(\d{1,18})(?!\d)"
"""A number that a server can mean: Python refuses to read one of thousands of digits."""
_GEMM = re.compile(rf"Try DeepGEMM JIT Compiling for <(\w+)> N={_N}, K={_N}, num_groups={_N}")
_POOL_END = "Memory pool end"
_OUT_OF_MEMORY = re.compile(rf"{OUT_OF_MEMORY}|Not enough memory\. Please try")
_NO_PREFILL_GRAPH = "Disabling auto-selected prefill CUDA graph: only"
_LEFT_OUT = "Disabling torch.compile."
_ADDRESS_IN_USE = re.compile(r"address already in use|\[Errno 98\]", re.IGNORECASE)
_PORT = re.compile(r"""(?:['"], |\bport:? |(?<!\.py)(?<!\.cpp):)(\d{4,5})\b""")
"""As uvicorn (`('127.0.0.1', 30999)`), torch's c10d (`port: 29500`, `[::]:29500`) and ZeroMQ (`tcp://x:5555`) say."""

_WORD_ARGS = "attention_backend prefill_attention_backend decode_attention_backend sampling_backend moe_runner_backend"
_ARGS = ("server_args=ServerArgs(", "server_args={")
"""The repr of an object; from 0.5.19 on, of a dict. Both are read field by field: some values are no literals."""
_DECODE_GRAPH = re.compile(
    rf"cuda_graph_config=CudaGraphConfig\(decode=PhaseConfig\(backend='\w+', max_bs={_N}"
    rf"|'cuda_graph_config': \{{'decode': \{{'backend': '\w+', 'max_bs': {_N}"
)
_DECODE_BATCHES = re.compile(r"Capture target decode CUDA graph (?:begin|end)\..*\bbs=\[(\d{1,18}(?:, \d{1,18})*)\]")
_LIMITS = {
    "max_total_tokens": re.compile(rf"\bmax_total_num_tokens={_N}"),
    "chunked_prefill_size": re.compile(r"\bchunked_prefill_size(?:=|': )(-?\d{1,18})(?!\d)"),
    "max_running_requests": re.compile(rf"\bmax_running_requests={_N}"),
    "context_length": re.compile(rf"\bcontext_len={_N}"),
}

_GEMM_BAR = re.compile(rf"DeepGEMM warmup:.*\| {_N}/{_N} \[")
_SHARDS = re.compile(rf"Loading .*checkpoint shards:.*\| {_N}/{_N} \[|Loading .*shards:.*Completed \| {_N}/{_N}")
_NINJA_FOLDER = re.compile(r"ninja: Entering directory [`'].*/([^/']+)'")
_NINJA_STEP = re.compile(rf"^\[{_N}/{_N}\] .* -o (\S+)")

_COMPILED = (
    (
        re.compile(r"Running NVCC command: |Running command: .*kernel\.cu --cubin "),
        "DeepGEMM compiled a kernel with nvcc",
    ),
    (re.compile(r"Compiling JIT runtime with NVRTC options"), "DeepGEMM compiled a kernel with NVRTC"),
    (re.compile(r"Cached JIT module (\S+) failed to load"), "sglang rebuilt {}"),
    (re.compile(r"SGLANG_CRASH_ON_JIT_COMPILE.*"), "sglang missed a kernel: {}"),
    # Not its `device-loaded after serving started`: that is said of a kernel from the cache, too.
    (re.compile(r"Triton kernel '([^']+)' took [\d.]+ s to compile after serving"), "Triton compiled {} while serving"),
    (_NINJA_STEP, "ninja built {}"),
)


def jit_events(line: str) -> str | None:
    """What a line says was compiled at run time, or None.

    DeepGEMM and FlashInfer say so only under the switches of `server_env`, SGLang of Triton only what takes long once
    it serves, its own modules and Inductor never, so that the proof of a warm start is that no file is new, and these
    lines name what was.
    """
    for pattern, text in _COMPILED:
        if found := pattern.search(line):
            named = [group for group in found.groups() if group] or [found[0]]
            return text.format("/".join(named[-1].split("/")[-2:])[:_SHOWN])
    return None


def hint_of(line: str) -> Hint | None:
    """The progress that a line tells."""
    for pattern, text in ((CAPTURE_BAR, "capturing CUDA graph"), (_GEMM_BAR, "compiling GEMM variants")):
        if found := pattern.search(line):
            return Hint(text=text, done=int(found[1]), total=int(found[2]))
    if found := _SHARDS.search(line):
        done, total = (int(group) for group in found.groups() if group)
        return Hint(text="loading weights", done=done, total=total)
    if found := _NINJA_FOLDER.search(line):
        return Hint(text=f"loading {found[1]}")
    if found := _NINJA_STEP.search(line):
        return Hint(text=f"compiling {_module(found[3])}", done=int(found[1]), total=int(found[2]))
    if "Load weight begin" in line:
        return Hint(text="loading weights")
    return None


def _module(path: str) -> str:
    """`norm` of `norm/norm.cuda.o`, and of `/long/way/norm/norm.so`."""
    parts = path.split("/")
    return parts[-2] if len(parts) > 1 else parts[-1].split(".")[0]


def resolved_args(line: str, before: ResolvedArgs) -> ResolvedArgs:
    """`before` with what this line says of the server's arguments."""
    found: dict[str, str | int | tuple[int, ...]] = {}
    if any(form in line for form in _ARGS):
        for name in _WORD_ARGS.split():
            if match := re.search(rf"\b{name}(?:=|': )'([^']*)'", line):
                found[name] = match[1]
        if match := _DECODE_GRAPH.search(line):
            found["decode_max_batch"] = int(match[1] or match[2])
        limits: tuple[str, ...] = ("chunked_prefill_size",)
    else:
        limits = tuple(_LIMITS) if "max_total_num_tokens=" in line else ()
    if match := _DECODE_BATCHES.search(line):
        found["decode_batches"] = tuple(map(int, match[1].split(",")))
    for name in limits:
        if match := _LIMITS[name].search(line):
            found[name] = int(match[1])
    return before.model_copy(update=found) if found else before


class LogReader:
    """Hears a server's log, a line or a progress bar's piece at a time, and keeps what matters of it."""

    def __init__(self) -> None:
        self.gemm_shapes: list[GemmShape] = []
        self.moe_configs = MoeConfigs()
        self.jit_events: list[str] = []
        """The first MAX_EVENTS of them."""
        self.args = ResolvedArgs()
        self.hint: Hint | None = None
        self.memory_pool_ended = False
        self.ready = False
        self.out_of_memory = False
        self.went_without_graphs = False
        """Too little memory was left for prefill CUDA graphs, so that other kernels run than where it was enough."""
        self.left_torch_compile_out = False
        """SGLang holds that this model cannot be compiled, and serves it all the same."""
        self.wants_more_memory = False
        """The static fraction does not even hold the weights: a smaller one would not help."""
        self._address_in_use = False
        self._taken_ports: set[int] = set()
        self._decisive: dict[str, str] = {}
        self._general: deque[str] = deque(maxlen=_MAX_GENERAL)
        self._deaths = DeathReader()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """The last lines, without progress bars."""

    @property
    def signs(self) -> tuple[str, ...]:
        """What `classify_failure` decides on: of each kind the first line, of places the last, the last exceptions."""
        return (*self._decisive.values(), *self._general)

    @property
    def death(self) -> Death | None:
        """What it died of, where it died of an exception; of a server that lives, its last exception."""
        return self._deaths.death

    @property
    def capturing(self) -> bool:
        """Whether CUDA graphs are being captured; of a dead server, whether they were."""
        return self._deaths.capturing

    def lost_port(self, port: int, *, dead: bool) -> bool:
        """Whether the server does not get `port`, since somebody has it.

        A server has ports beside its own, and may do without them; where it dies of one that its log does not name,
        it is taken to be its own.
        """
        return port in self._taken_ports or (dead and self._address_in_use and not self._taken_ports)

    def hear(self, line: str) -> None:
        line = line[:MAX_PIECE].replace("\x1b[A", "").rstrip()
        if not line:
            return
        self.hint = hint_of(line) or self.hint
        if "it/s]" not in line[-12:] and "s/it]" not in line[-12:]:
            self.tail.append(redacted_text(line)[:_SHOWN])
        if sign := sign_of(line):
            shown = redacted_text(line)[:_SHOWN]
            self._keep(sign, shown)
        if len(self.jit_events) < MAX_EVENTS and (event := jit_events(line)):
            self.jit_events.append(event)
        self._note(line)
        self._deaths.hear(line)

    def _keep(self, sign: str, shown: str) -> None:
        if sign == GENERAL:
            self._general.append(shown)
        elif sign == PLACE:
            self._decisive[sign] = shown
        else:
            self._decisive.setdefault(sign, shown)

    def _note(self, line: str) -> None:
        if found := _GEMM.search(line):
            shape = GemmShape(kind=found[1], n=int(found[2]), k=int(found[3]), groups=int(found[4]))
            if shape not in self.gemm_shapes:  # every rank says it
                self.gemm_shapes.append(shape)
        self.moe_configs = heard(line, self.moe_configs)
        self.args = resolved_args(line, self.args)
        self.memory_pool_ended |= _POOL_END in line
        self.ready |= READY in line
        self.out_of_memory |= _OUT_OF_MEMORY.search(line) is not None
        self.went_without_graphs |= _NO_PREFILL_GRAPH in line
        self.left_torch_compile_out |= _LEFT_OUT in line
        self.wants_more_memory |= wants_more_memory(line)
        if _ADDRESS_IN_USE.search(line):
            self._address_in_use = True
            self._taken_ports.update(int(port) for port in _PORT.findall(line))
