"""The `deep_gemm` stage: the matrix products that SGLang runs through DeepGEMM, compiled before any server starts.

Which products those are the installed SGLang says, or our tables where it was not asked (`sglang/gemm_shapes`), and one
unit is one product. Where neither knows, the one unit is `server`: the server then compiles for itself.
"""

import re
from collections.abc import Mapping, Sequence

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.signature import Signature
from rayprep.model.spec import DeepGemmVia, DeviceChoice
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import WidthMissing
from rayprep.sglang.gemm_shapes import KINDS, SERVER_UNIT, GemmShape, gemm_shapes, listed_shapes, uses_nvrtc
from rayprep.sglang.hopper import HOPPER
from rayprep.sglang.releases import DEEP_JIT_NVCC, has_deep_jit, since
from rayprep.stages.deep_gemm.by_server import compile_via_server
from rayprep.stages.deep_gemm.cache import CUBIN, clear_left_over, entries, files_of, whole_entry
from rayprep.stages.deep_gemm.run import run_gemms
from rayprep.stages.plain_paths import unable_under
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.entries import find_places, remove_entry
from rayprep.store.scan import CacheScan

# Measured on 16 cores with sglang 0.5.16: 27 kernels of two products in 30 s. Only a first guess.
SECONDS_PER_SHAPE = 15.0
BYTES_PER_SHAPE = 16 << 20
BYTES_ONCE = 64 << 20
"""Room for the compiler's temporary files."""


class DeepGemmStage:
    """Compiles DeepGEMM's kernels."""

    name = StageName.DEEP_GEMM

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="its kernels are compiled for a GPU, and none is used here")
        if request.refused:
            return request.refused
        spec, environ = request.spec, request.means.environ
        shapes, left = _shapes(request)
        if shapes == ():
            return NotNeeded(reason="no_fp8_blocks", detail="SGLang runs nothing of this model through DeepGEMM")
        if reason := _unused(request.signature, environ):
            return NotNeeded(reason="deep_gemm_off", detail=reason)
        units = _units(shapes, environ, request.signature) if shapes else (SERVER_UNIT,)
        if unable := _unable(request.signature, environ):
            return unable.model_copy(update={"units": units})
        work = _work(units, by_sglang=not shapes or spec.deep_gemm_via is DeepGemmVia.SERVER)
        told = {"listed_by": request.listed_by} if shapes else {"listed_by": "server", "left": left}
        return work.model_copy(update=told)

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        remove_half_written(context.layout)
        if work.by_sglang:
            return compile_via_server(request, work, context)
        shapes = [GemmShape.parse(unit.partition(",")[0]) for unit in work.units]
        return build_shapes(shapes, request, context)

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        """An entry appears as a whole or not at all, so one with all of its files can be kept."""
        return [path for path in suspects if not whole_entry((layout.profiles / path).parent)]

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        cubins = [size for path, size in scans[0].files.items() if path.endswith(f"/{CUBIN}")]
        return Artifacts(
            cache_dir=layout.located(layout.cache(CacheName.DEEP_GEMM)),
            cubins=Tally(count=len(cubins), bytes=sum(cubins)),
        )


def _shapes(request: StageRequest) -> tuple[tuple[GemmShape, ...] | None, str]:
    """Return the products; or None, and why they are not known."""
    capability = request.signature.compute_capability
    if capability != HOPPER:
        return None, f"which products SGLang runs through DeepGEMM on {capability} is not known"
    spec, architecture = request.spec, request.model.architecture
    if request.inventory:
        return listed_shapes(request.inventory), "its experts are of a type whose products are not known"
    try:
        shapes = gemm_shapes(architecture, spec.tp, spec.server_args, request.signature.sglang_version)
    except WidthMissing as missing:
        return None, str(missing)
    return shapes, "" if shapes is not None else f"rayprep's tables do not know {architecture.family or 'this model'}"


def _units(shapes: Sequence[GemmShape], environ: Mapping[str, str], signature: Signature) -> tuple[str, ...]:
    """Name the products' units. What NVRTC compiles is another kernel than what nvcc does."""
    by_nvrtc = uses_nvrtc(environ, signature.deep_gemm_version)
    return tuple(f"{shape}, nvrtc" if by_nvrtc else str(shape) for shape in shapes)


def _work(units: tuple[str, ...], *, by_sglang: bool) -> Work:
    return Work(
        units=units,
        required_bytes=BYTES_ONCE + BYTES_PER_SHAPE * len(units),
        seconds=SECONDS_PER_SHAPE * len(units),
        estimate=f"{len(units)} products at the shipped guess for each",
        by_sglang=by_sglang,
    )


def _unused(signature: Signature, environ: Mapping[str, str]) -> str | None:
    """Why SGLang would not use DeepGEMM here. Source: deep_gemm_wrapper/configurer.py and environ.py."""
    if environ.get("SGLANG_ENABLE_JIT_DEEPGEMM", "true").lower() in ("0", "false", "no", "n"):
        return "SGLANG_ENABLE_JIT_DEEPGEMM is off"
    capability = int(re.sub(r"\D", "", signature.compute_capability or "") or 0)
    return None if 90 <= capability < 120 else f"SGLang does not use DeepGEMM on {signature.compute_capability}"


def _unable(signature: Signature, environ: Mapping[str, str]) -> Unable | None:
    if unable := unable_under(signature, "DeepGEMM"):
        return unable
    version, nvcc = signature.deep_gemm_version, signature.nvcc
    missing = [
        *(() if version else ("DeepGEMM (pip install 'rayprep[sglang]')",)),
        *(() if nvcc or uses_nvrtc(environ, version) else ("nvcc (set CUDA_HOME, or put it on PATH)",)),
    ]
    if missing:
        return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message="missing: " + " and ".join(missing))
    if has_deep_jit(version) and not since(nvcc, DEEP_JIT_NVCC):
        message = f"nvcc {nvcc} is too old: DeepGEMM {version} compiles with {DEEP_JIT_NVCC} or newer"
        return Unable(
            error_type=ErrorType.TOOLCHAIN_MISMATCH, message=message, hint="point CUDA_HOME at a newer toolkit"
        )
    return None


def remove_half_written(layout: Layout) -> None:
    """Takes away what no DeepGEMM could load, and what a killed build of ours left. For the holder of the store's lock.

    Raises:
        OSError: something of it cannot be removed.
    """
    cache = layout.cache(CacheName.DEEP_GEMM)
    clear_left_over(cache)
    half = [(CacheName.DEEP_GEMM, f"cache/{entry.name}") for entry in entries(cache) if not whole_entry(entry)]
    for entry, places in find_places(layout.profiles, half).items():
        remove_entry(layout, entry, places)


def build_shapes(shapes: Sequence[GemmShape], request: StageRequest, context: BuildContext) -> Built:
    """Compiles what the cache lacks of these products, and proves that it now holds all of them.

    Raises:
        StageError: they could not be built, with the reason.
        Interrupted: the run was cancelled.
    """
    if unknown := [shape for shape in shapes if shape.kind not in KINDS]:
        raise StageError(ErrorType.UNSUPPORTED, f"deep_gemm cannot list kernels of the kind {unknown[0].kind}")
    said = run_gemms(shapes, request, context)
    folder = context.layout.cache(CacheName.DEEP_GEMM)
    used = (folder / "cache" / name for name in said.used)
    return Built(
        units=_units(shapes, context.env, request.signature),
        used=frozenset(
            f"{entry.relative_to(context.layout.profiles)}/{name}" for entry in used for name in files_of(entry)
        ),
        compiled=said.compiled,
    )
