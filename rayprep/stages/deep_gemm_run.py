"""One run of the `deep_gemm` stage's child process, as its parent sees it."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from rayprep.host.toolchain import find_nvcc
from rayprep.model.caches import CacheName
from rayprep.model.errors import ErrorType, StageError
from rayprep.model.gemm import GemmShape, chunked_prefill_size, m_values, uses_nvrtc
from rayprep.stages.child_run import ended, keep_line, log_tail, lost, run_child
from rayprep.stages.deep_gemm_protocol import GEMM_LINE, GemmFailLine, GemmRequest, KernelsLine, StepLine, Task
from rayprep.stages.listing_folder import ListingFolder
from rayprep.stages.protocol import BuildContext, StageRequest

_WHAT = "kernels' build"
_MOST_PROCESSES = 8
"""Of those that each import torch, and hold a CUDA context."""

_ERROR_OF = {
    "compile_failed": ErrorType.COMPILE_FAILED,
    "toolchain": ErrorType.TOOLCHAIN_MISMATCH,
    "no_space": ErrorType.INSUFFICIENT_DISK,
    "out_of_memory": ErrorType.OOM_DURING_WARMUP,
    "nvrtc": ErrorType.NVRTC_COMPILE_FAILED,
    "unlisted": ErrorType.VERIFY_FAILED,
}


def _second_layout(version: str | None) -> bool:
    """Whether this DeepGEMM writes files of its own beside a cubin, so that only it can make an entry."""
    major, minor = [*re.findall(r"\d+", version or ""), "0", "0"][:2]
    return (int(major), int(minor)) >= (0, 2)


class GemmRun:
    """One child from start to end, and what it said."""

    def __init__(self, shapes: Sequence[GemmShape], request: StageRequest, context: BuildContext) -> None:
        self.context = context
        self.done: KernelsLine | None = None
        self.failed: GemmFailLine | None = None
        # Two calls for one stage do not share a folder.
        self.scratch = Path(tempfile.mkdtemp(prefix="listing.", dir=context.scratch))
        cache = str(context.layout.cache(CacheName.DEEP_GEMM))
        rows = m_values(chunked_prefill_size(request.spec.server_args))
        by_itself = uses_nvrtc(context.env) or _second_layout(request.signature.deep_gemm_version)
        cpus = len(os.sched_getaffinity(0))
        nvcc = context.env.get("DG_JIT_NVCC_COMPILER") or find_nvcc(context.env) or ""
        self.request = GemmRequest(
            mode="library" if by_itself else "nvcc",
            tasks=tuple(Task(shape=shape, rows=rows) for shape in shapes),
            cache=cache,
            scratch=str(self.scratch),
            nvcc=nvcc,
            parallel=min(_MOST_PROCESSES, max(1, cpus // 2)) if by_itself else cpus,
        )
        paths = {"DG_JIT_CACHE_DIR": cache} if by_itself else ListingFolder(self.scratch).prepare(nvcc)
        # What it would dump beside a cubin it cannot dump beside a stub.
        kept = {name: value for name, value in context.env.items() if not name.startswith("DG_JIT_DUMP_")}
        self.env = {**kept, **paths, "DG_JIT_USE_NVRTC": "1" if uses_nvrtc(context.env) else "0"}

    def go(self) -> KernelsLine:
        """Raises as `deep_gemm.build_shapes` does."""
        context = self.context
        context.report("importing DeepGEMM", None, None)
        file = self.scratch / "request.json"
        status = run_child("deep_gemm_child", self.request, file, self.env, context, self._hear, _WHAT)
        if self.failed or status != 0 or self.done is None:
            raise self._error(status)
        return self.done

    def _hear(self, line: str) -> None:
        try:
            said = GEMM_LINE.validate_json(line)
        except ValidationError:
            keep_line(self.context, line)
            return
        if isinstance(said, StepLine):
            self.context.report(said.hint, said.n, said.m)
        elif isinstance(said, KernelsLine):
            self.done = said
        else:
            self.failed = said

    def _error(self, status: int) -> StageError:
        if self.failed is not None:
            return StageError(_ERROR_OF[self.failed.kind], self.failed.message, log_tail=log_tail(self.context))
        return lost(status, _WHAT, self.context) or ended(status, _WHAT, self.context)
