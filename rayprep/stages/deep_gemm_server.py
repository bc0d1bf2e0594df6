"""DeepGEMM's kernels by way of SGLang's own server: for a model that rayprep does not know, or on request.

The server compiles each product's kernels one after another when a request first needs it. It runs without CUDA
graphs, which would only cost time, and is ended once the warm-up requests have returned.
"""

from rayprep.host.reads import ReadTracker
from rayprep.host.scan import scan_cache
from rayprep.host.server import Watch
from rayprep.model.caches import CacheName, entry_of
from rayprep.model.plan import Work
from rayprep.model.warmup import GenerateRequest, Round, Sampling
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.warmup_server import implied_command, open_server, record_of

_WITHOUT_GRAPHS = "--disable-cuda-graph"
_ENV = {
    # As sglang.compile_deep_gemm sets them: the last leads MLA through the products of its chunked prefix as well.
    "SGLANG_ENABLE_JIT_DEEPGEMM": "1",
    "SGLANG_IN_DEEPGEMM_PRECOMPILE_STAGE": "1",
    "SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD": "0",
}


def compile_via_server(request: StageRequest, work: Work, context: BuildContext) -> Built:
    """Starts a server, sends it what reaches every product, and ends it.

    Raises:
        StageError: it did not start, died, or answered with an error.
        Interrupted: the run was cancelled.
    """
    before = _artifacts(context)
    tracker = ReadTracker(context.layout.profiles, before)
    watch = Watch(context.deadline, context.cancelled, context.tick, context.report)
    args = request.spec.server_args
    graphless = request.spec.model_copy(
        update={"server_args": args if _WITHOUT_GRAPHS in args else (*args, _WITHOUT_GRAPHS)}
    )
    given = StageRequest(graphless, request.model, request.device, request.signature)
    command_for = implied_command(given, context.scratch)
    env = {**context.env, **_ENV}
    server = open_server(graphless, command_for, env, context.log, watch, context.lock_descriptors, context.gpus)
    try:
        with server:
            server.start()
            server.send(_requests(request.model.architecture.vocab_size))
            context.report("the warm-up request returned", None, None)
            record = record_of(server, command_for(server.port or 0, server.mem_fraction), graphless.load_format)
    finally:
        if server.cleanup:
            context.ended(server.cleanup)
    after = _artifacts(context)
    shapes = server.reader.gemm_shapes
    return Built(
        units=(*work.units, *(str(shape) for shape in shapes if str(shape) not in work.units)),
        used=_whole(tracker.read_of(after), after),
        compiled=tuple(sorted({_entry(path) for path in after if path not in before})),
        warnings=("compiled by SGLang's own server, one kernel after another",),
        env=_ENV,
        server=record,
    )


def _requests(vocab_size: int) -> tuple[Round, ...]:
    """A prompt, and a longer one that begins alike."""
    ids = tuple(number % vocab_size for number in range(7, 7 + 300))
    how = Sampling(max_new_tokens=8)
    return tuple((GenerateRequest(input_ids=(ids[:count],), sampling_params=how),) for count in (4, 100, 300))


def _artifacts(context: BuildContext) -> dict[str, int]:
    return scan_cache(context.layout.profiles, CacheName.DEEP_GEMM).files


def _entry(path: str) -> str:
    return entry_of(CacheName.DEEP_GEMM, path.partition("/")[2])


def _whole(read: frozenset[str], there: dict[str, int]) -> frozenset[str]:
    entries = {_entry(path) for path in read}
    return frozenset(path for path in there if _entry(path) in entries)
