"""The `serve` stage: a real server is started and asked for everything, so that what it alone compiles is there.

That is Triton's kernels, SGLang's own modules, the small graphs that it has Inductor compile, and whatever the stages
before it did not know of.
"""

from collections.abc import Sequence

from rayprep.base.errors import ErrorType
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice, PrepSpec, StageOp
from rayprep.model.stages import STAGES, StageName
from rayprep.sglang.torch_compile import asks
from rayprep.sglang.warmup_requests import LONGEST_PREFILL
from rayprep.stages.plain_paths import unable_under
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.serve.jit_ahead import SglangJit
from rayprep.stages.warmup_server import record_of, rounds_for, warmup_server
from rayprep.store.cache_watch import CacheWatch
from rayprep.store.scan import CacheScan

# Measured on an H200 with four layers: 45 s with everything but these caches warm, 30 MiB in them.
SECONDS = 60.0
BYTES = 256 << 20
_OWN = frozenset(cache.value for cache in STAGES[StageName.SERVE].caches)
_OF_OTHERS = tuple(cache for cache in CacheName if cache.value not in _OWN)
_SOUND = (CacheName.TRITON,)
"""Written file by file under other names and renamed, so that an aborted run leaves none of them half written."""


class ServeStage:
    """Starts the warm-up server; its units are what the requests reach."""

    name = StageName.SERVE

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="SGLang's server needs a GPU, and none is used here")
        if unable := unable_to_serve(request.signature):
            return unable
        return Work(
            units=_units(request),
            required_bytes=BYTES,
            seconds=SECONDS,
            estimate="one server's start and its requests",
        )

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        caches = CacheWatch(context.layout, CacheName)
        # The modules' compilers end before the server does.
        with warmup_server(request, context) as server, SglangJit(request, context) as ahead:
            server.start()
            server.send(rounds_for(request, server.reader.args))
            left = ahead.finish()
            record = record_of(server, request.spec.load_format)
        use = caches.look()
        return Built(
            units=_units(request),  # the plan may have hoped for a server with torch.compile
            used=frozenset(path for path in use.read if path.partition("/")[0] in _OWN),
            elsewhere=use.within(_OF_OTHERS),
            compiled=tuple(name for name in use.made if name.partition("/")[0] in _OWN),
            warnings=(*left, *server.warnings),
            server=record,
            gemm_shapes=tuple(server.reader.gemm_shapes),
            moe_configs=server.reader.moe_configs,
        )

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        return [path for path in suspects if path.partition("/")[0] not in _SOUND]

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        return Artifacts(
            cache_dir=layout.located(layout.cache(CacheName.TRITON)),
            files=Tally(count=sum(scan.file_count for scan in scans), bytes=sum(scan.size_bytes for scan in scans)),
        )


def serve_follows(spec: PrepSpec) -> bool:
    """Whether this stage starts a server after the others, on what they have built."""
    return StageName.SERVE in spec.selected and spec.op(StageName.SERVE) is not StageOp.SKIP


def unable_to_serve(signature: Signature) -> Unable | None:
    """Why SGLang's server cannot run here, where it cannot."""
    if signature.sglang_version is None:
        message = "sglang is not installed (pip install 'rayprep[sglang]')"
        return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message=message)
    return unable_under(signature, "SGLang")


def _units(request: StageRequest) -> tuple[str, ...]:
    """What was warmed up without torch.compile says nothing of a server with it, whose kernels are others."""
    compiled = ("decode with torch.compile",) if asks(request.spec.server_args) else ()
    return (f"prefill up to {_longest(request)} tokens", "decode in batches", "greedy and sampled", *compiled)


def _longest(request: StageRequest) -> int:
    """Tokens of the longest prompt that the server is asked for, and that it allows."""
    asked = request.spec.max_seq_len
    return min(max(LONGEST_PREFILL, asked or 0), asked or request.model.architecture.max_position_embeddings)
