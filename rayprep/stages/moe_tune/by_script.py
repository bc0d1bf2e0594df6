"""SGLang's own tuner in place of ours: the script is run, and its file tried and taken."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.text import one_line
from rayprep.host.files import read_bytes
from rayprep.host.gpu import visible_env
from rayprep.model.tuning import TuningCounts
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.child.run import keep_line, log_tail, run_command
from rayprep.stages.moe_tune.config_entries import ConfigFiles
from rayprep.stages.moe_tune.outcome import built_of
from rayprep.stages.moe_tune.protocol import TunedLine
from rayprep.stages.moe_tune.run import kernels_env, run_tuner, without_configs
from rayprep.stages.moe_tune.search import Choice, with_own
from rayprep.stages.moe_tune.units import sizes_of
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.moe_folder import shipped_configs

_ENTRIES: TypeAdapter[dict[int, KernelConfig]] = TypeAdapter(dict[int, KernelConfig])


def tune_by_script(request: StageRequest, shape: MoeShape, context: BuildContext) -> Built:
    """Runs SGLang's own tuner, which writes its file into the folder that it is started in.

    Raises:
        StageError: it failed, or left no config file.
        Interrupted: the run was cancelled.
    """
    folder, kernels = context.scratch / "tuned", context.scratch / "kernels"
    folder.mkdir()
    kernels.mkdir()
    context.report(f"running {request.spec.moe_tuner_script}", None, None)
    own = kernels_env(kernels)
    env = {**without_configs(context.env), **visible_env(context.host_gpus), **own}
    command = _script_command(request, shape, folder)
    status = run_command(command, env, context, partial(keep_line, context), "MoE tuner")
    found = sorted(path for path in folder.glob("E=*.json"))
    if status != 0 or not found:
        message = f"{request.spec.moe_tuner_script} ended with status {status} and left {len(found)} config files"
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, message, log_tail=log_tail(context))
    said, files = _read_script(request, shape, found[0])
    tried = run_tuner(request, shape, context, context.scratch / "none.jsonl", kernels, files)
    choices = with_own(said.choices, {entry.batch_size for entry in tried.refused})
    outcome = {"files": tried.files, "refused": tried.refused, "counts": tried.counts, "choices": choices}
    said = said.model_copy(update={**outcome, "warnings": (*said.warnings, *tried.warnings)})
    left = [str(size) for size in sizes_of(request.spec) if size not in files.up]
    nearest = f"the script tuned nothing for {', '.join(left)} tokens, which take the nearest size's config"
    built = built_of(request, shape, context, said)
    return replace(built, env=own, warnings=(*built.warnings, nearest) if left else built.warnings)


def _script_command(request: StageRequest, shape: MoeShape, folder: Path) -> list[str]:
    spec = request.spec
    sizes = spec.moe_batch_sizes
    return [
        *("env", "-C", str(folder), sys.executable, str(Path(str(spec.moe_tuner_script)).absolute()), "--tune"),
        *("--model", str(request.model.source.absolute().parent), "--tp-size", str(spec.tp)),
        *(("--dtype", shape.dtype) if shape.dtype else ()),
        *(("--per-channel-quant",) if shape.per_channel else ()),
        *(("--batch-size", str(sizes[0])) if len(sizes) == 1 else ()),
    ]


def _read_script(request: StageRequest, shape: MoeShape, file: Path) -> tuple[TunedLine, ConfigFiles]:
    try:
        entries = _ENTRIES.validate_json(read_bytes(file))
    except (OSError, ValueError) as error:
        problem = one_line(str(error), 300)
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, f"{file.name} is no config file: {problem}") from None
    if not entries or not file.name.startswith(f"E={shape.experts},N={shape.width},"):
        what = f"is for other experts than {shape}" if entries else "has no entry"
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, f"{file.name} {what}")
    version, files = request.signature.triton_version or "", ConfigFiles(up=entries)
    said = TunedLine(
        name=file.name,
        down_name=f"{file.stem}_down.json",
        folder=f"triton_{version.replace('.', '_')}",
        triton_version=version,
        shipped=str(shipped_configs() or file.parent),
        files=files,
        choices=tuple(
            Choice(tokens=size, config=config, us=None, stock_us=None) for size, config in sorted(entries.items())
        ),
        counts=TuningCounts(),
    )
    return said, files
