"""The command line of a warm-up server, and what can be read off a user's own.

Source of the names: `python -m sglang.launch_server --help`, sglang 0.5.16. It parses with argparse, which takes the
beginning of a flag's name for the flag, and the last of a flag that is given twice.
"""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from rayprep.base.errors import BadRequest
from rayprep.base.otlp import OtlpEndpoint
from rayprep.base.records import Record
from rayprep.sglang.flags import full_name, pairs

PORTS_TRIED = 5
"""Ports that one slice of a host tries: the contract's 30999 to 30995."""
RETRY_MEM_FRACTION = 0.93
"""The contract's second and last try."""
WATCHDOG_S = 3600
"""A forward batch that compiles outlives SGLang's own 300 s."""
_LOOPBACK = "127.0.0.1"
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})


class ServerSettings(Record):
    """What rayprep asks of a server. `server_args` go to it as they are, and win over the rest."""

    model_path: str
    tp: int = Field(default=1, ge=1)
    mem_fraction: float = Field(default=0.96, gt=0, lt=1)
    load_format: str = "dummy"
    skip_tokenizer: bool = True
    context_length: int | None = Field(default=None, gt=0)
    tracing: OtlpEndpoint | None = None
    server_args: tuple[str, ...] = ()


def server_command(settings: ServerSettings, port: int, mem_fraction: float, python: str) -> tuple[str, ...]:
    """The command of a server on the loopback address. What `server_args` says itself is not said twice.

    Raises:
        BadRequest: a word of `server_args` belongs to no flag.
    """
    tracing = settings.tracing
    ours: tuple[tuple[tuple[str, ...], str | None, bool], ...] = (
        (("--tp-size", "--tp", "--tensor-parallel-size"), str(settings.tp), True),
        (("--mem-fraction-static",), str(mem_fraction), True),
        (("--load-format",), settings.load_format, True),
        (("--skip-tokenizer-init",), None, settings.skip_tokenizer),
        (("--context-length",), str(settings.context_length), settings.context_length is not None),
        (("--watchdog-timeout",), str(WATCHDOG_S), True),
        (("--enable-metrics",), None, True),
        (("--enable-trace",), None, tracing is not None),
        (("--otlp-traces-endpoint",), tracing.address if tracing else None, tracing is not None),
    )
    said = [name for name, _ in pairs(settings.server_args)]
    words = ["--model-path", settings.model_path, "--host", _LOOPBACK, "--port", str(port)]
    for names, value, wanted in ours:
        if wanted and not any(_means(name, names) for name in said):
            words += [names[0]] if value is None else [names[0], value]
    # -P: it runs where the user stands, and must not import a file there that is called like a module.
    return (python, "-P", "-m", "sglang.launch_server", *words, *settings.server_args)


def _means(name: str, flags: Sequence[str]) -> bool:
    """Tell whether argparse would take `name` for one of `flags`."""
    return full_name(name) in {full_name(flag) for flag in flags}


def option_of(command: Sequence[str], *flags: str) -> str | None:
    """The value that a command gives one of `flags`, in either form; the last one, as argparse takes it."""
    found = None
    for word, following in zip(command, [*command, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--") and _means(name, flags):
            found = value if equals else following
    return found


_LAUNCHERS = ("sglang.launch_server", "launch_server.py")
_OF_THE_REQUEST = frozenset(
    {
        *("model", "model_path", "host", "port", "tp", "tp_size", "tensor_parallel_size", "load_format"),
        *("skip_tokenizer_init", "mem_fraction_static", "api_key", "admin_api_key", "context_length"),
    }
)


def request_of(command: Sequence[str]) -> dict[str, object]:
    """What a server command says of a request, by PrepSpec's fields, so that it need not be said twice.

    Its flags become `server_args`, since they decide which kernels are compiled, and so which caches are meant.
    A command that starts SGLang out of sight, in a script of its own, says nothing.
    """
    flags = _sglang_flags(command)
    if flags is None:
        return {}
    length = option_of(flags, "--context-length")
    named: dict[str, object] = {
        "model": option_of(flags, "--model-path", "--model"),
        "tp": option_of(flags, "--tp-size", "--tp", "--tensor-parallel-size"),
        "max_seq_len": length,
        "server_args": tuple(_others(flags)),
    }
    return {name: value for name, value in named.items() if value is not None}


def _sglang_flags(command: Sequence[str]) -> tuple[str, ...] | None:
    """The words after the one that starts SGLang: what comes before is docker's, numactl's, srun's. None without it."""
    for i, (word, following) in enumerate(zip(command, [*command, ""][1:], strict=True)):
        if word.endswith(_LAUNCHERS):
            return tuple(command[i + 1 :])
        if word.rpartition("/")[2] == "sglang" and following == "serve":
            return tuple(command[i + 2 :])
    return None


def _others(flags: Sequence[str]) -> Iterator[str]:
    wanted = False
    for word in flags:
        if word.startswith("--"):
            wanted = full_name(word.partition("=")[0]) not in _OF_THE_REQUEST
        if wanted:
            yield word


def address_of(command: Sequence[str]) -> tuple[str, int]:
    """Where a server that was started with this command is reached from its own host.

    Raises:
        BadRequest: its port is no port.
    """
    host = option_of(command, "--host") or _LOOPBACK
    port = option_of(command, "--port") or "30000"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadRequest(f"--port {port} is no port", hint="give the server command a port from 1 to 65535")
    return (_LOOPBACK if host in _ANY_ADDRESS else host), int(port)


def refuse_tls(words: Sequence[str]) -> None:
    """Raises BadRequest when a server's flags have it speak TLS: it would never be seen to be ready."""
    if option_of(words, "--ssl-certfile", "--ssl-keyfile") is not None:
        raise BadRequest(
            "a warm-up server speaks plain HTTP on its own host, not TLS",
            hint="leave --ssl-certfile and --ssl-keyfile out: they change no kernel",
        )


def warmup_ports(base: int, slice_index: int = 0) -> tuple[int, ...]:
    """The ports that one slice of a host tries, in order: `base` downwards. No two slices share one."""
    first = base - PORTS_TRIED * slice_index
    return tuple(range(first, first - PORTS_TRIED, -1))


def next_mem_fraction(tried: tuple[float, ...]) -> float | None:
    """The fraction to try after those that were too large, or None: there is one more try, and only one."""
    if len(tried) != 1:
        return None
    first = tried[0]
    lower = RETRY_MEM_FRACTION if first > RETRY_MEM_FRACTION else round(first - 0.05, 2)
    return lower if lower > 0 else None


def proof_mem_fraction(asked: float, served: float | None, *, insisted: bool) -> float:
    """The fraction that a proof starts with.

    With more than `serve` had memory for, other kernels may run: CUDA graphs take memory.

    Args:
        served: at which `serve` ran; None where that is not known.
        insisted: `asked` was said for this proof, and is no default.
    """
    return asked if insisted or served is None else min(asked, served)


def server_env(environ: Mapping[str, str]) -> dict[str, str]:
    """What a warm-up server needs beside the environment that it is given.

    The two compilers' switches only make them name what they compile; neither changes what is compiled.
    FLASHINFER_JIT_VERBOSE alone would (flashinfer/jit/core.py takes it for a debug build), so DEBUG is always set.
    """
    debug = environ.get("FLASHINFER_JIT_DEBUG", environ.get("FLASHINFER_JIT_VERBOSE", "0"))
    return {
        "SGLANG_WARMUP_TIMEOUT": environ.get("SGLANG_WARMUP_TIMEOUT", str(WATCHDOG_S)),
        "PYTHONUNBUFFERED": "1",
        "FLASHINFER_JIT_DEBUG": debug,
        "FLASHINFER_JIT_VERBOSE": "1",
        "DG_JIT_PRINT_COMPILER_COMMAND": "1",
    }
