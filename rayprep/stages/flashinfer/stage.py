"""The `flashinfer` stage on Hopper: FlashInfer's modules, each compiled by itself, all side by side.

Two child processes do the work. The first imports flashinfer, writes the modules' sources and runs their ninjas. The
second is as cold as a server will be and has ninja say that no work is left. What a start reads of a module, and the
completion lists, is all that lies in its `cached_ops` and `generated` folders: the library is loaded, the sources are
compared with what flashinfer would write, and ninja looks at the times of objects and sources. Its log and its list
of headers (`.ninja_log`, `.ninja_deps`) are companions: a lost one makes the server compile again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import WidthMissing
from rayprep.sglang.flashinfer_modules import FlashInferModule, flashinfer_modules, module_of
from rayprep.sglang.hopper import HOPPER, HOPPER_ARCH
from rayprep.stages.child.run import run_child
from rayprep.stages.flashinfer.protocol import CHILD_LINE, ModuleDone, ModulesRequest
from rayprep.stages.plain_paths import unable_under
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.scan import CacheScan, scan_cache

__all__ = ["FlashInferStage", "module_of"]

_ARCH_LIST = "FLASHINFER_CUDA_ARCH_LIST"

# Measured on 16 cores with four modules side by side, and guessed from it; later runs reckon from their own history.
_SECONDS = {"gen_batch_prefill_module": 70.0, "gen_batch_mla_module": 60.0, "gen_trtllm_comm_module": 60.0}
_SECONDS_OF_OTHERS = 30.0
_BYTES_PER_MODULE = 48 << 20
_BYTES_ONCE = 512 << 20
"""Room for the compilers' temporary files."""

_WHAT = "compiling process"


class FlashInferStage:
    """Builds the modules that model, TP and server arguments lead to; one unit is one module."""

    name = StageName.FLASHINFER

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="its kernels are compiled for a GPU, and none is used here")
        return request.refused or self._on_gpu(request)

    def _on_gpu(self, request: StageRequest) -> StagePlan:
        if request.signature.compute_capability != HOPPER:
            detail = f"flashinfer's modules are known for {HOPPER} only, not for {request.signature.device_name}"
            return NotNeeded(reason="unknown_gpu", detail=f"{detail}: the server compiles them")
        try:
            modules = _modules(request)
        except WidthMissing as missing:
            return NotNeeded(reason="unknown_widths", detail=f"{missing}: the server compiles them")
        if not modules:
            return NotNeeded(reason="no_modules", detail="a server with these arguments uses no FlashInfer kernel")
        units = tuple(str(module) for module in modules)
        if unable := _unable(request):
            return unable.model_copy(update={"units": units})
        return Work(
            units=units,
            required_bytes=_BYTES_ONCE + _BYTES_PER_MODULE * len(modules),
            seconds=max(_SECONDS.get(module.generator, _SECONDS_OF_OTHERS) for module in modules),
            estimate=f"{len(modules)} modules side by side at the shipped guess for the longest",
            listed_by=request.listed_by,
        )

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        env = {_ARCH_LIST: context.env.get(_ARCH_LIST, HOPPER_ARCH)}
        workspace = str(context.layout.cache(CacheName.FLASHINFER))
        modules = _modules(request)
        context.report(f"compiling {len(modules)} FlashInfer modules", 0, len(modules))
        built = _run(ModulesRequest(mode="build", workspace=workspace, modules=modules), context, env)
        context.report("checking in a second process", 0, len(modules))
        checked = _run(ModulesRequest(mode="check", workspace=workspace, built=built), context, env)
        if left := [module.name for module in checked if module.compiled]:
            raise StageError(ErrorType.VERIFY_FAILED, f"a second process would compile again: {', '.join(left)}")
        return Built(
            units=tuple(str(module) for module in modules),
            used=_used(context.layout, built),
            compiled=tuple(module.unit for module in built if module.compiled),
            env=env,
        )

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        """What a killed ninja left half-written is not in its log, so it is made again before it is loaded.

        Only a host that lost its power keeps the log's entry of a file whose content never reached the disk.
        """
        return [path for path in suspects if _is_empty(layout.profiles / path)]

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        scan = scans[0]
        return Artifacts(
            workspace_dir=layout.located(layout.cache(CacheName.FLASHINFER)),
            files=Tally(count=scan.file_count, bytes=scan.size_bytes),
        )


def _modules(request: StageRequest) -> tuple[FlashInferModule, ...]:
    """Raises WidthMissing where the config leaves one out that is needed."""
    spec = request.spec
    version = request.signature.sglang_version
    return flashinfer_modules(request.model.architecture, spec.tp, spec.server_args, request.inventory, version)


def _unable(request: StageRequest) -> Unable | None:
    signature = request.signature
    if unable := unable_under(signature, "FlashInfer"):
        return unable
    missing = [
        *(() if signature.flashinfer_version else ("flashinfer (pip install 'rayprep[sglang]')",)),
        *(() if signature.nvcc else ("nvcc (install a CUDA toolkit, or set CUDA_HOME)",)),
        *(() if signature.cxx else ("a C++ compiler (apt-get install g++, or set CXX)",)),
        *(() if request.means.ninja else ("ninja on PATH (pip install ninja)",)),
    ]
    if missing:
        return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message="missing: " + " and ".join(missing))
    return None


def _run(request: ModulesRequest, context: BuildContext, env: Mapping[str, str]) -> tuple[ModuleDone, ...]:
    """Raises as `run_child` does."""
    file, env = context.scratch / f"{request.mode}.json", {**context.env, **env}
    return run_child("flashinfer.child", request, file, env, context, CHILD_LINE, _WHAT).modules


def _used(layout: Layout, built: Sequence[ModuleDone]) -> frozenset[str]:
    """The artifacts of the modules, below the profiles root; of this flashinfer and GPU architecture alone."""
    names = [(module.folder, name) for module in built if module.folder for name in (module.name, *module.beside)]
    starts = tuple(start for folder, name in names for start in _starts(folder, name))
    return frozenset(
        file for file in scan_cache(layout.profiles, CacheName.FLASHINFER).files if file.startswith(starts)
    )


def _starts(folder: str, name: str) -> tuple[str, ...]:
    """How the paths of a module's files begin. Some modules' only source lies beside the folders."""
    home = f"{CacheName.FLASHINFER.value}/{folder.rsplit('/', 2)[0]}"
    return f"{home}/cached_ops/{name}/", f"{home}/generated/{name}/", f"{home}/generated/{name}."


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False  # gone, which ninja sees
