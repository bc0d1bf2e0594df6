"""One run of our tuner's child process."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.gpu import visible_env
from rayprep.host.layout import Layout, os_error_type
from rayprep.model.caches import CacheName
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.child.run import run_child
from rayprep.stages.moe_tune.config_entries import ConfigFiles
from rayprep.stages.moe_tune.outcome import built_of
from rayprep.stages.moe_tune.protocol import TUNE_LINE, TunedLine, TuneRequest
from rayprep.stages.moe_tune.search import SEED, tuning_digest
from rayprep.stages.moe_tune.units import capability_of, sizes_of
from rayprep.stages.protocol import BuildContext, Built, StageRequest

_WHAT = "MoE tuner"
_CONFIG_DIR = "SGLANG_MOE_CONFIG_DIR"
_DEADLINE_S = 300.0
"""For one kernel to compile, or one measurement: a hundred times what they take."""


def tune(request: StageRequest, shape: MoeShape, context: BuildContext) -> Built:
    """Tunes, and writes what a server reads.

    Raises:
        StageError: it failed, with the reason. What was measured is kept.
        Interrupted: the run was cancelled.
    """
    home = tuning_home(request, shape, context.layout)
    kernels = home / "kernels"
    with _said():
        context.layout.store.make(kernels)
    said = run_tuner(request, shape, context, home / "measurements.jsonl", kernels)
    built = replace(built_of(request, shape, context, said), env=kernels_env(kernels))
    _remove(context.layout, kernels)  # nothing but a tuning reads them, and this one is over
    return built


def run_tuner(
    request: StageRequest,
    shape: MoeShape,
    context: BuildContext,
    log: Path,
    kernels: Path,
    given: ConfigFiles | None = None,
) -> TunedLine:
    """Runs our tuner's child: it tunes, or it tries the `given` files as if it had."""
    spec = request.spec
    gpus = [gpu for gpu in context.host_gpus if gpu.name == context.gpus[0].name] if context.gpus else []
    asked = TuneRequest(
        shape=shape,
        strategy=spec.moe_strategy,
        sizes=() if given else sizes_of(spec),
        given=given,
        log=str(log),
        kernels=str(kernels),
        campaign=str(context.layout.cache(CacheName.TRITON)),
        seed=SEED,
        gpus=tuple(gpu.index for gpu in gpus) or (0,),
        uuids=tuple(gpu.uuid for gpu in gpus),
        compilers=len(os.sched_getaffinity(0)),
        capability=capability_of(request.signature),
        release=request.signature.sglang_version,
        deadline_s=_DEADLINE_S,
    )
    env = {**without_configs(context.env), **visible_env(gpus), **kernels_env(kernels)}
    context.report("starting the tuner", None, None)
    file, died = context.scratch / "tune.json", ErrorType.TUNER_EXECUTION_ERROR
    return run_child("moe_tune.child", asked, file, env, context, TUNE_LINE, _WHAT, died)


def kernels_env(kernels: Path) -> dict[str, str]:
    """No server runs a losing kernel."""
    return {"TRITON_CACHE_DIR": str(kernels)}


def tuning_home(request: StageRequest, shape: MoeShape, layout: Layout) -> Path:
    """Where the tuning keeps what it measures; emptied where the user asked for it to be done again.

    Raises:
        StageError: there is a link on the way.
    """
    home = layout.cache(CacheName.MOE_CONFIGS) / "tuning" / tuning_digest(request.signature, shape)
    with _said(), contextlib.suppress(FileNotFoundError), layout.store.folder(home):
        pass
    if request.spec.op(StageName.MOE_TUNE) is StageOp.REBUILD:
        _remove(layout, home)
    return home


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Raise StageError where a folder is a link or somebody else's: no scan of the cache looks into these."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
        raise StageError(os_error_type(error), message, hint="move it away") from None


def _remove(layout: Layout, folder: Path) -> None:
    with contextlib.suppress(OSError):
        layout.store.remove(folder)


def without_configs(env: Mapping[str, str]) -> dict[str, str]:
    """SGLang's own configs are what ours are compared with, so none of ours may be in sight."""
    return {name: value for name, value in env.items() if name != _CONFIG_DIR}
