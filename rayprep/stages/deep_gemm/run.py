"""One run of the `deep_gemm` stage's child process, as its parent sees it."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayprep.host.toolchain import find_nvcc
from rayprep.model.caches import CacheName
from rayprep.sglang.gemm_shapes import GemmShape, chunked_prefill_size, largest_rows, m_values, uses_nvrtc
from rayprep.stages.child.run import run_child
from rayprep.stages.deep_gemm.listing_folder import ListingFolder
from rayprep.stages.deep_gemm.protocol import GEMM_LINE, GemmRequest, KernelsLine, Task
from rayprep.stages.protocol import BuildContext, StageRequest

_WHAT = "kernels' build"
_DUMPS = ("DG_JIT_DUMP_", "DJ_JIT_DUMP_")
_MOST_PROCESSES = 8
"""Of those that each import torch, and hold a CUDA context."""


def _by_itself(environ: Mapping[str, str], *, nvrtc: bool) -> bool:
    """Whether only the library can make an entry: by NVRTC, or with a disassembly, which no stub has."""
    return nvrtc or any(environ.get(name, "0") != "0" for name in ("DG_JIT_DEBUG", "DJ_JIT_DEBUG"))


def run_gemms(shapes: Sequence[GemmShape], request: StageRequest, context: BuildContext) -> KernelsLine:
    """Has the child build these products. Raises as `stage.build_shapes` does."""
    # Two calls for one stage do not share a folder.
    scratch = Path(tempfile.mkdtemp(prefix="listing.", dir=context.scratch))
    cache = str(context.layout.cache(CacheName.DEEP_GEMM))
    reached = request.inventory.largest_rows if request.inventory else None
    rows = m_values(reached or largest_rows(chunked_prefill_size(request.spec.server_args)))
    nvrtc = uses_nvrtc(context.env, request.signature.deep_gemm_version)
    by_itself = _by_itself(context.env, nvrtc=nvrtc)
    cpus = len(os.sched_getaffinity(0))
    nvcc = context.env.get("DG_JIT_NVCC_COMPILER") or find_nvcc(context.env) or ""
    asked = GemmRequest(
        mode="library" if by_itself else "nvcc",
        tasks=tuple(Task(shape=shape, rows=rows) for shape in shapes),
        cache=cache,
        scratch=str(scratch),
        nvcc=nvcc,
        parallel=min(_MOST_PROCESSES, max(1, cpus // 2)) if by_itself else cpus,
    )
    paths = {"DG_JIT_CACHE_DIR": cache} if by_itself else ListingFolder(scratch).prepare(nvcc)
    # What it would dump beside a cubin it cannot dump beside a stub.
    kept = {name: value for name, value in context.env.items() if not name.startswith(_DUMPS)}
    env = {**kept, **paths, "DG_JIT_USE_NVRTC": "1" if nvrtc else "0"}
    context.report("importing DeepGEMM", None, None)
    return run_child("deep_gemm.child", asked, scratch / "request.json", env, context, GEMM_LINE, _WHAT)
