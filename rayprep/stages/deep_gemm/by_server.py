"""DeepGEMM's kernels by way of SGLang's own server: for a model that rayprep does not know, or on request.

The server compiles each product's kernels one after another when a request first needs it. It runs without CUDA
graphs, which would only cost time, and is ended once the warm-up requests have returned.
"""

from rayprep.model.caches import CacheName
from rayprep.model.plan import Work
from rayprep.sglang.gemm_shapes import SERVER_UNIT
from rayprep.sglang.warmup_requests import GenerateRequest, Round, Sampling
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.warmup_server import record_of, warmup_server
from rayprep.store.cache_watch import CacheWatch

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
    cache = CacheWatch(context.layout, (CacheName.DEEP_GEMM,))
    args = request.spec.server_args
    graphless = request.with_server_args(args if _WITHOUT_GRAPHS in args else (*args, _WITHOUT_GRAPHS))
    with warmup_server(graphless, context, {**context.env, **_ENV}) as server:
        server.start()
        server.send(_requests(request.model.architecture.token_ids))
        context.report("the warm-up request returned", None, None)
        record = record_of(server, request.spec.load_format)
    use = cache.look()
    named = {str(shape) for shape in server.reader.gemm_shapes}
    covered = {unit for unit in work.units if unit == SERVER_UNIT or unit.partition(",")[0] in named}
    unasked = [unit for unit in work.units if unit not in covered]
    return Built(
        units=(*sorted(covered), *sorted(named - {unit.partition(",")[0] for unit in covered})),
        used=use.read,
        compiled=use.made,
        warnings=(
            "compiled by SGLang's own server, one kernel after another",
            *((f"the server never asked for {', '.join(unasked)}",) if unasked else ()),
        ),
        env=_ENV,
        server=record,
    )


def _requests(vocab_size: int) -> tuple[Round, ...]:
    """A prompt, and a longer one that begins alike."""
    ids = tuple(number % vocab_size for number in range(7, 7 + 300))
    how = Sampling(max_new_tokens=8)
    return tuple((GenerateRequest(input_ids=(ids[:count],), sampling_params=how),) for count in (4, 100, 300))
