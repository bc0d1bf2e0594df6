"""The decode step on a GPU: a server of SGLang compiles it as it starts, up to the largest batch asked for.

It is compiled while CUDA graphs are captured, for each captured batch. A second start must find all of it, and tunes
for good what is left of its kernels: that is the server of `serve`, or one of our own where that stage is left out.
Where no server starts with torch.compile, that is said by name, with the line of the log that tells why.
"""

from collections.abc import Collection, Mapping, Sequence

from rayprep.base.errors import ErrorType, StageError, Unsupported
from rayprep.host.environment import on_every_core
from rayprep.model.caches import CacheName
from rayprep.model.plan import Work
from rayprep.model.stages import STAGES, StageName
from rayprep.server.server import Server
from rayprep.sglang.failures import is_accident, torch_compile_failure
from rayprep.sglang.log import LogReader, ResolvedArgs
from rayprep.sglang.torch_compile import ENABLE, max_batch, with_max_batch
from rayprep.sglang.warmup_requests import decode_requests
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.serve.jit_ahead import SglangJit
from rayprep.stages.serve.stage import serve_follows
from rayprep.stages.warmup_server import record_of, warmup_server
from rayprep.store.cache_watch import CacheUse, CacheWatch, entry_name

_GRAPHS = ("torchinductor/fxgraph/", "torchinductor/aotautograd/")
_OF_SMALL_FUNCTIONS = 5
"""Graphs in fxgraph/ that say nothing of decode: small functions of SGLang's had none to three of them on servers
without torch.compile (tests/gpu/evidence/slices), and the decode step at one batch size has nine (inductor/dense)."""


def compile_on_gpu(request: StageRequest, work: Work, context: BuildContext) -> Built:
    """Starts the server, has it decode in batches of the sizes asked for, and ends it.

    Raises:
        Unsupported: torch.compile is what keeps it from starting, or it compiled too few graphs for decode.
        StageError: as any server's, or `verify_failed` where a second start compiles graphs again.
        Interrupted: the run was cancelled.
    """
    spec = request.spec
    asked = request.with_server_args(with_max_batch(spec.server_args, max(spec.batch_sizes)))
    cache, own = CacheWatch(context.layout, (CacheName.TORCHINDUCTOR,)), on_every_core()
    server, left = _decode(asked, context, {**context.env, **own})
    use, args = cache.look(), server.reader.args
    _check_graphs({entry_name(path) for path in use.read if path.startswith(_GRAPHS[0])}, asked, server.reader)
    return Built(
        units=work.units,
        used=use.read if serve_follows(spec) else _start_again(asked, context).read,
        compiled=tuple(name for name in use.made if name.startswith(_GRAPHS)),
        warnings=(*left, *_beyond(spec.batch_sizes, args)),
        env=own,
        server=record_of(server, spec.load_format),
    )


def _decode(asked: StageRequest, context: BuildContext, env: Mapping[str, str]) -> tuple[Server, tuple[str, ...]]:
    """Returns the server, which has ended, and what was not built ahead for it."""
    with warmup_server(asked, context, env) as server:
        try:
            with SglangJit(asked, context) as ahead:
                server.start()
                server.send(decode_requests(asked.model.architecture.token_ids, asked.spec.batch_sizes))
                return server, ahead.finish()
        except StageError as error:
            raise _explained(error, server.reader) from None


def _start_again(asked: StageRequest, context: BuildContext) -> CacheUse:
    """What a server uses that starts as every other will: not on every core, so that what it tunes is kept."""
    context.report("starting it a second time", None, None)
    caches = CacheWatch(context.layout, STAGES[StageName.INDUCTOR].caches)
    _decode(asked, context, context.env)
    use = caches.look()
    if again := [name for name in use.made if name.startswith(_GRAPHS)]:
        message = f"a second start compiled {len(again)} graphs again, first {again[0]}"
        raise StageError(ErrorType.VERIFY_FAILED, message)
    return use


def _check_graphs(graphs: Collection[str], asked: StageRequest, reader: LogReader) -> None:
    """Each batch has graphs of its own, and small functions of SGLang's have some without torch.compile."""
    if reader.left_torch_compile_out:
        raise Unsupported(f"SGLang holds that this model cannot be compiled, and leaves {ENABLE} out")
    largest = max_batch(asked.spec.server_args)
    batches = [size for size in reader.args.decode_batches if largest is None or size <= largest]
    if len(graphs) < _OF_SMALL_FUNCTIONS + max(1, len(batches)):
        told = f" in batches of {', '.join(map(str, batches))}" if batches else ""
        raise Unsupported(f"the server started with {ENABLE} and used {len(graphs)} graphs, too few for decode{told}")


def _beyond(asked: Sequence[int], args: ResolvedArgs) -> tuple[str, ...]:
    largest = max(args.decode_batches, default=0)
    beyond = [str(size) for size in asked if largest < size]
    said = f"decode captures no batch above {largest}: {', '.join(beyond)} runs without what was compiled"
    return (said,) if largest and beyond else ()


def _explained(error: StageError, reader: LogReader) -> StageError:
    """A server that does not start with torch.compile is no defect of this host."""
    if error.error_type is not ErrorType.SERVER_START_FAILED:
        return error
    said = torch_compile_failure(reader.signs, reader.death.line if reader.death else None)
    if said is None:
        return error
    message = f"no server of this model starts with {ENABLE} under these versions and flags: {said}"
    hint = f"leave {ENABLE} out, or try other flags; the serve stage warms up what the others compile"
    if is_accident(said):  # it is tried again next time
        return StageError(ErrorType.UNSUPPORTED, message, hint=hint, log_tail=error.log_tail)
    return Unsupported(message, hint=hint, log_tail=error.log_tail)
