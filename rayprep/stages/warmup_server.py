"""The server that a request implies: which model, which flags, which ports, which GPUs, which requests."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rayprep.base.otlp import OtlpEndpoint
from rayprep.base.secrets import redacted_command
from rayprep.host.gpu import Gpu, visible_env
from rayprep.host.toolchain import can_trace
from rayprep.model.result import ServerRecord
from rayprep.model.spec import PrepSpec
from rayprep.server.server import Server, Watch
from rayprep.sglang.command import ServerSettings, address_of, option_of, server_command, warmup_ports
from rayprep.sglang.log import ResolvedArgs
from rayprep.sglang.warmup_requests import Round, default_largest_batch, warmup_requests
from rayprep.stages.protocol import BuildContext, StageRequest

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")
_UNHEEDED = 0.5
"""Stands for a memory fraction where the command goes by its own."""
CommandFor = Callable[[int, float], Sequence[str]]


def settings_of(request: StageRequest, scratch: Path) -> ServerSettings:
    """What a server is started with. `scratch` takes a config.json that goes by another name, as SGLang wants it."""
    spec, source = request.spec, request.model.source
    folder = source.parent
    if source.name != "config.json":
        folder = scratch / "model"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / "config.json")
    return ServerSettings(
        model_path=str(folder),
        tp=spec.tp,
        mem_fraction=spec.mem_fraction,
        load_format=spec.load_format,
        skip_tokenizer=not any((folder / name).exists() for name in _TOKENIZERS),
        context_length=spec.max_seq_len,
        tracing=server_tracing(spec),
        server_args=spec.server_args,
    )


def server_tracing(spec: PrepSpec) -> OtlpEndpoint | None:
    """Where a server's traces go. None as well where it could not send any: SGLang would not start."""
    return spec.tracing if can_trace() else None


def implied_command(request: StageRequest, scratch: Path) -> CommandFor:
    """The command of the server that this request implies, for a port and a memory fraction."""
    settings = settings_of(request, scratch)
    return lambda port, fraction: server_command(settings, port, fraction, sys.executable)


def open_server(
    spec: PrepSpec,
    command_for: CommandFor,
    env: Mapping[str, str],
    log: Path,
    watch: Watch,
    lock_descriptors: Sequence[int],
    gpus: Sequence[Gpu],
    slice_index: int = 0,
) -> Server:
    """A server of rayprep's own, on its slice's warm-up ports, that sees `gpus` alone. Not started yet."""
    tracing = server_tracing(spec)
    return Server(
        command_for,
        warmup_ports(spec.warmup_port, slice_index),
        spec.mem_fraction,
        {**env, **visible_env(gpus), **(tracing.server_env if tracing else {})},
        log,
        watch,
        lock_descriptors,
        [gpu.uuid for gpu in gpus],
    )


@contextmanager
def warmup_server(
    request: StageRequest, context: BuildContext, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The server that a stage's request implies, to be started within the block. It ends with it, and its end is told.

    Args:
        env: in place of the stage's own.
    """
    server = open_server(
        request.spec,
        implied_command(request, context.scratch),
        context.env if env is None else env,
        context.log,
        Watch(context.deadline, context.cancelled, context.tick, context.report),
        context.lock_descriptors,
        context.gpus,
    )
    try:
        with server:
            yield server
    finally:
        if server.cleanup:
            context.ended(server.cleanup)


def open_own_server(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    watch: Watch,
    lock_descriptors: Sequence[int],
    gpus: Sequence[Gpu],
) -> Server:
    """The user's own server command, at its own port, with every GPU that the user let it see. Not started yet."""
    return Server(
        lambda *_: tuple(command),
        (address_of(command)[1],),
        _UNHEEDED,
        env,
        log,
        watch,
        lock_descriptors,
        [g.uuid for g in gpus],
    )


def rounds_for(request: StageRequest, args: ResolvedArgs) -> tuple[Round, ...]:
    """The requests that reach every kernel of this model, as far as the server said what it allows."""
    model, spec = request.model.architecture, request.spec
    batch = args.decode_max_batch or default_largest_batch(spec.tp)
    batch = min(batch, args.max_running_requests or batch)
    context = args.context_length or spec.max_seq_len or model.max_position_embeddings
    context = min(context, args.max_total_tokens or context)
    return warmup_requests(model.token_ids, context, batch, args.chunked_prefill_size, spec.max_seq_len)


def record_of(server: Server, load_format: str) -> ServerRecord:
    """How a server that was ready had been started. What its command says goes before what was asked of it."""
    command = server.command
    assert server.pid is not None and server.port is not None and server.ready_s is not None
    return ServerRecord(
        warmup_pid=server.pid,
        port=server.port,
        mem_fraction=float(option_of(command, "--mem-fraction-static") or server.mem_fraction),
        attempts=server.attempts,
        load_format=option_of(command, "--load-format") or load_format,
        ready_s=round(server.ready_s, 3),
        command=redacted_command(command),
    )
