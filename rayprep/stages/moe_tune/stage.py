"""The `moe_tune` stage: SGLang's fused MoE kernel, tuned for this model's experts on this kind of GPU.

What a server reads of it is one config file, and perhaps its `_down` twin; the completion lists no more. One unit is
one number of tokens. Measurements and kernels of a tuning lie below `moe_configs/tuning/`, where nobody looks but the
next run of a tuning that was stopped.
"""

from collections.abc import Sequence

from rayprep.base.errors import BadRequest, ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.result import Artifacts, Tally
from rayprep.model.spec import DeviceChoice, MoeStrategy
from rayprep.model.stages import StageName
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.by_script import tune_by_script
from rayprep.stages.moe_tune.confirm import confirm_by_server
from rayprep.stages.moe_tune.run import tune
from rayprep.stages.moe_tune.search import estimated_seconds
from rayprep.stages.moe_tune.units import label_of, shape_of, sizes_of, unit_name
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.serve.stage import serve_follows
from rayprep.store.scan import CacheScan

_BYTES = 1 << 30
"""Of kernels while it tunes; they are removed in the end."""
_BYTES_OF_A_SWEEP = 6 << 30
_SCRIPT_SECONDS = 2644.0
"""Of the official tuner for one number of tokens, as its authors published for an H100."""


class MoeTuneStage:
    """Tunes, writes the config file, and has a server say that it uses it."""

    name = StageName.MOE_TUNE

    def plan(self, request: StageRequest) -> StagePlan:
        if request.device is DeviceChoice.CPU:
            return NotNeeded(reason="no_gpu", detail="its kernels are compiled for a GPU, and none is used here")
        shape = shape_of(request)
        if not isinstance(shape, MoeShape):
            return shape
        sizes = sizes_of(request.spec)
        units = tuple(unit_name(label_of(request.spec), shape, size) for size in sizes)
        if unable := _unable(request):
            return unable.model_copy(update={"units": units})
        return _work(request, shape, sizes, units)

    def build(self, request: StageRequest, work: Work, context: BuildContext) -> Built:
        shape = shape_of(request)
        if not isinstance(shape, MoeShape):
            raise StageError(ErrorType.UNSUPPORTED, f"there is nothing to tune: {shape.detail}")
        run = tune_by_script if request.spec.moe_tuner_script else tune
        built = run(request, shape, context)
        if serve_follows(request.spec) or not built.used:
            return built
        return confirm_by_server(request, context, built)

    def unsound(self, layout: Layout, suspects: Sequence[str]) -> Sequence[str]:
        """Every file is written under another name and renamed, Triton's too."""
        return ()

    def describe(self, layout: Layout, scans: Sequence[CacheScan]) -> Artifacts:
        own = scans[0]
        tally = Tally(count=own.file_count, bytes=own.size_bytes)
        return Artifacts(cache_dir=layout.located(layout.cache(own.cache)), files=tally)


def _unable(request: StageRequest) -> Unable | None:
    signature = request.signature
    wanted = {"sglang": signature.sglang_version, "torch": signature.torch_version, "triton": signature.triton_version}
    if missing := [name for name, version in wanted.items() if version is None]:
        message = f"missing: {' and '.join(missing)} (pip install 'rayprep[sglang]')"
        return Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message=message)
    script = request.spec.moe_tuner_script
    if script and not request.means.tuner_script:
        raise BadRequest(f"--moe-tuner-script {script} is no file", hint="give the path of tuning_fused_moe_triton.py")
    return None


def _work(request: StageRequest, shape: MoeShape, sizes: Sequence[int], units: tuple[str, ...]) -> Work:
    spec, cpus = request.spec, request.means.cpus
    if spec.moe_tuner_script:
        seconds, said = _SCRIPT_SECONDS * len(sizes), "as published for the official tuner"
    else:
        seconds = estimated_seconds(spec.moe_strategy, shape, sizes, cpus, 1, request.signature.sglang_version)
        said = f"strategy {spec.moe_strategy} on {cpus} CPUs at the shipped guess for each config"
    return Work(
        units=units,
        required_bytes=_BYTES_OF_A_SWEEP if spec.moe_strategy is MoeStrategy.SWEEP else _BYTES,
        seconds=seconds,
        estimate=f"{len(sizes)} batch sizes {said}",
        batch_sizes=tuple(sizes),
        listed_by=request.listed_by,
        by_sglang=True,
    )
