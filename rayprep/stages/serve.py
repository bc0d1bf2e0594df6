"""The `serve` stage: a real server is started and asked for everything, so that what it alone compiles is there.

That is Triton's kernels, SGLang's own modules, the small graphs that it has Inductor compile, and whatever the stages
before it did not know of.
"""

from collections.abc import Sequence

from rayprep.host.layout import Layout
from rayprep.host.reads import ReadTracker
from rayprep.host.scan import CacheScan, scan_cache
from rayprep.host.server import Watch
from rayprep.model.caches import CacheName, entry_of
from rayprep.model.errors import ErrorType
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import STAGES, StageName
from rayprep.model.warmup import LONGEST_PREFILL
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.sglang_jit import SglangJit
from rayprep.stages.warmup_server import implied_command, open_server, record_of, rounds_for

# Measured on an H200 with four layers: 45 s with everything but these caches warm, 30 MiB in them.
SECONDS = 60.0
BYTES = 256 << 20
_SOUND = (CacheName.TRITON,)
"""Written file by file under other names and renamed, so that an aborted run leaves none of them half written."""


class ServeStage:
    """Starts the warm-up server; its units are what the requests reach."""

    name = StageName.SERVE

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="SGLang's server needs a GPU, and none is used here")
        if request.signature.sglang_version is None:
            message = "sglang is not installed (pip install 'rayprep[sglang]')"
            return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message=message)
        longest = max(LONGEST_PREFILL, request.spec.max_seq_len or 0)
        return Work(
            units=(f"prefill up to {longest} tokens", "decode in batches", "greedy and sampled"),
            required_bytes=BYTES,
            seconds=SECONDS,
            estimate="one server's start and its requests",
        )

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        profiles = context.layout.profiles
        before = _artifacts(context.layout)
        tracker = ReadTracker(profiles, before)
        watch = Watch(context.deadline, context.cancelled, context.tick, context.report)
        command_for = implied_command(request, context.scratch)
        server = open_server(
            request.spec, command_for, context.env, context.log, watch, context.lock_descriptors, context.gpus
        )
        try:
            # The modules' compilers end before the server does.
            with server, SglangJit(request, context) as ahead:
                server.start()
                server.send(rounds_for(request, server.reader.args))
                left = ahead.finish()
                command = command_for(server.port or 0, server.mem_fraction)
                record = record_of(server, command, request.spec.load_format)
        finally:
            if server.cleanup:
                context.ended(server.cleanup)
        after = _artifacts(context.layout)
        return Built(
            units=work.units,
            used=_whole_entries(tracker.read_of(after), after),
            compiled=tuple(sorted({_named(path) for path in after if path not in before})),
            warnings=(*left, *_warnings(server.memory_returned, record.mem_fraction, request.spec.mem_fraction)),
            server=record,
            gemm_shapes=tuple(server.reader.gemm_shapes),
        )

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        return [path for path in suspects if path.partition("/")[0] not in _SOUND]

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        return Artifacts(
            cache_dir=layout.located(layout.cache(CacheName.TRITON)),
            files=Tally(count=sum(scan.file_count for scan in scans), bytes=sum(scan.size_bytes for scan in scans)),
        )


def _artifacts(layout: Layout) -> dict[str, int]:
    scans = (scan_cache(layout.profiles, cache) for cache in STAGES[StageName.SERVE].caches)
    return {path: size for scan in scans for path, size in scan.files.items()}


def _named(path: str) -> str:
    cache, _, below = path.partition("/")
    return f"{cache}/{entry_of(CacheName(cache), below)}"


def _whole_entries(read: frozenset[str], there: dict[str, int]) -> frozenset[str]:
    """All files of each entry of which one was read: a library may only look whether the others are there."""
    entries = {_named(path) for path in read}
    return frozenset(path for path in there if _named(path) in entries)


def _warnings(memory_returned: bool | None, used: float, asked: float) -> tuple[str, ...]:
    found = []
    if used != asked:
        found.append(f"mem fraction {asked} left too little GPU memory; {used} was used")
    if memory_returned is False:
        found.append("the GPU's memory was not back to where it was when the server had ended")
    return tuple(found)
