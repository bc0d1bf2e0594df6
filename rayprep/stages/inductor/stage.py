"""The `inductor` stage: the model's decode step, really compiled by TorchInductor.

On a GPU it is SGLang's own server that compiles it (`by_server`). On a host without one, two child processes do
the work. The first compiles one graph for each batch size and compares it with eager. The second is as cold as a
server will be: it must find every graph in the cache and write no new artifact, and the files that it reads are those
that the completion lists.
"""

from collections.abc import Sequence
from typing import Literal

import psutil

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import counted
from rayprep.host.environment import on_every_core
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import Architecture, WidthMissing
from rayprep.sglang.flags import ServerFlags
from rayprep.stages.child.run import run_child
from rayprep.stages.inductor.by_server import compile_on_gpu
from rayprep.stages.inductor.gpu_plan import plan_on_gpu
from rayprep.stages.inductor.protocol import (
    CHILD_LINE,
    DecodeRequest,
    GraphsLine,
    memory_bytes,
    unit_name,
)
from rayprep.stages.plain_paths import remedy
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.scan import CacheScan, scan_cache

# Measured on two cores with torch 2.13 on the CPU; only a first guess, later runs reckon from their own history.
SECONDS_PER_GRAPH = 12.0
BYTES_PER_GRAPH = 24 << 20
BYTES_ONCE = 64 << 20
"""Room for the compiler's temporary files."""
_CPU_ONLY = {"CUDA_VISIBLE_DEVICES": ""}
"""On a host with GPUs, Inductor would ask Triton for one even for a graph that stays on the CPU."""
_INTERPRETER_BYTES = 512 << 20
"""What Python, torch and Inductor take beside the tensors."""
_COMPILER_BYTES = 350 << 20
"""What one C++ compiler takes; Inductor runs one on each CPU, for the 5 to 8 kernels of a graph."""
_COMPILERS = 8
_WHAT = "compiling process"


class InductorStage:
    """Compiles the decode step for the batch sizes asked; one unit is one graph."""

    name = StageName.INDUCTOR

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CUDA:
            return plan_on_gpu(request)
        if unable := self._unable(request):
            return unable
        spec, architecture = request.spec, _as_served(request)
        sizes = spec.batch_sizes
        try:
            units = tuple(unit_name(architecture, spec.tp, size, spec.seq_len, "cpu") for size in sizes)
        except WidthMissing as missing:
            return NotNeeded(reason="unknown_widths", detail=str(missing))
        return Work(
            units=units,
            required_bytes=BYTES_ONCE + BYTES_PER_GRAPH * len(sizes),
            seconds=SECONDS_PER_GRAPH * len(sizes),
            estimate=f"{counted(len(sizes), 'graph')} at the shipped guess for each",
            memory_bytes=memory_bytes(architecture, spec.tp, sizes, spec.seq_len)
            + _INTERPRETER_BYTES
            + _COMPILER_BYTES * min(request.means.cpus, _COMPILERS),
        )

    def _unable(self, request: StageRequest) -> Unable | None:
        folders = (request.signature.profiles_root, request.signature.install_prefix)
        if spaced := next((folder for folder in folders if any(letter.isspace() for letter in folder)), None):
            # It calls the compiler with unquoted paths.
            message = f"TorchInductor cannot compile under a path with white space: {spaced!r}"
            return Unable(error_type=ErrorType.UNSUPPORTED, message=message, hint=remedy(spaced, request.signature))
        missing = [
            *(() if request.signature.torch_version else ("torch (pip install 'rayprep[cpu]')",)),
            *(() if request.signature.cxx else ("a C++ compiler (apt-get install g++, or set CXX)",)),
        ]
        if missing:
            return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message="missing: " + " and ".join(missing))
        return None

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        if request.device is DeviceChoice.CUDA:
            return compile_on_gpu(request, work, context)
        available = psutil.virtual_memory().available
        if available < work.memory_bytes:
            raise StageError(
                ErrorType.OOM_DURING_WARMUP,
                f"the decode step needs {work.memory_bytes >> 20} MiB of memory, {available >> 20} MiB are available",
                hint="free memory, or choose smaller --batch-size or --max-seq-len, or a larger --tp",
            )
        compiled = _run("build", request, context)
        before = scan_cache(context.layout.profiles, CacheName.TORCHINDUCTOR).files
        checked = _run("check", request, context)
        after = scan_cache(context.layout.profiles, CacheName.TORCHINDUCTOR).files
        _prove_warm(checked, sorted(after.keys() - before.keys()))
        folder = CacheName.TORCHINDUCTOR.value
        return Built(
            units=work.units,
            used=frozenset(f"{folder}/{path}" for path in checked.used),
            compiled=tuple(graph.unit for graph in compiled.graphs if not graph.cache_hit),
            env=_own_env(),
        )

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        """A linker that was killed leaves half a library, which is loaded without a word. Triton leaves no half."""
        return [path for path in suspects if path.partition("/")[0] != CacheName.TRITON]

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        scan = scans[0]
        return Artifacts(
            cache_dir=layout.located(layout.cache(CacheName.TORCHINDUCTOR)),
            files=Tally(count=scan.file_count, bytes=scan.size_bytes),
        )


def _as_served(request: StageRequest) -> Architecture:
    """Return the model with the type that a server of these flags computes in."""
    architecture = request.model.architecture
    dtype = ServerFlags(request.spec.server_args).dtype(architecture)
    return architecture.model_copy(update={"dtype": dtype})


def _own_env() -> dict[str, str]:
    return {**_CPU_ONLY, **on_every_core()}


def _prove_warm(checked: GraphsLine, new: Sequence[str]) -> None:
    missed = [graph.unit for graph in checked.graphs if not graph.cache_hit]
    if missed:
        raise StageError(ErrorType.VERIFY_FAILED, f"a second process compiled again: {', '.join(missed)}")
    if new:
        raise StageError(ErrorType.VERIFY_FAILED, f"a second process wrote {len(new)} new files, first {new[0]}")


def _run(mode: Literal["build", "check"], request: StageRequest, context: BuildContext) -> GraphsLine:
    """Raises as `run_child` does."""
    spec = request.spec
    asked = DecodeRequest(
        mode=mode,
        architecture=_as_served(request),
        tp=spec.tp,
        batch_sizes=spec.batch_sizes,
        max_seq_len=spec.seq_len,
        device="cpu",
        cache_dir=str(context.layout.cache(CacheName.TORCHINDUCTOR)),
    )
    context.report("compiling" if mode == "build" else "checking in a second process", 0, len(spec.batch_sizes))
    file, env = context.scratch / f"{mode}.json", {**context.env, **_own_env()}
    return run_child("inductor.child", asked, file, env, context, CHILD_LINE, _WHAT)
