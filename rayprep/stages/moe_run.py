"""One run of our tuner's child process, or of SGLang's own tuner, and the files that come of it."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from rayprep.host.files import read_bytes
from rayprep.host.gpu import visible_env
from rayprep.host.layout import Layout, os_error_type
from rayprep.host.moe_folder import shipped_configs
from rayprep.model.caches import CacheName
from rayprep.model.errors import ErrorType, StageError
from rayprep.model.moe import MoeShape
from rayprep.model.moe_entries import ConfigFiles
from rayprep.model.moe_search import SEED, TUNER_VERSION, Choice, first_candidates, tuning_digest
from rayprep.model.moe_space import KernelConfig
from rayprep.model.spec import MoeStrategy, PrepSpec, StageOp
from rayprep.model.stages import StageName
from rayprep.model.tuning import TunedSize, Tuning, TuningCounts
from rayprep.stages.child_run import keep_line, log_tail, run_child, run_command
from rayprep.stages.moe_files import facts_of, kept_aside, link_active, seed, write_config
from rayprep.stages.moe_tune import capability_of, covered_units, label_of, sizes_of
from rayprep.stages.moe_tune_protocol import TUNE_LINE, TunedLine, TuneRequest
from rayprep.stages.protocol import BuildContext, Built, StageRequest

_WHAT = "MoE tuner"
_CONFIG_DIR = "SGLANG_MOE_CONFIG_DIR"
_DEADLINE_S = 300.0
"""For one kernel to compile, or one measurement: a hundred times what they take."""
_ENTRIES: TypeAdapter[dict[int, KernelConfig]] = TypeAdapter(dict[int, KernelConfig])


def tune(request: StageRequest, shape: MoeShape, context: BuildContext) -> Built:
    """Tunes, and writes what a server reads.

    Raises:
        StageError: it failed, with the reason. What was measured is kept.
        Interrupted: the run was cancelled.
    """
    spec = request.spec
    home = tuning_home(request, shape, context.layout)
    kernels = home / "kernels"
    with _said():
        context.layout.store.make(kernels)
    gpus = [gpu for gpu in context.host_gpus if gpu.name == context.gpus[0].name] if context.gpus else []
    asked = TuneRequest(
        shape=shape,
        strategy=spec.moe_strategy,
        sizes=sizes_of(spec),
        log=str(home / "measurements.jsonl"),
        kernels=str(kernels),
        campaign=str(context.layout.cache(CacheName.TRITON)),
        seed=SEED,
        gpus=tuple(gpu.index for gpu in gpus) or (0,),
        uuids=tuple(gpu.uuid for gpu in gpus),
        compilers=len(os.sched_getaffinity(0)),
        capability=capability_of(request.signature),
        deadline_s=_DEADLINE_S,
    )
    own = {"TRITON_CACHE_DIR": str(kernels)}
    env = {**_env(context.env), **visible_env(gpus), **own}
    context.report("starting the tuner", None, None)
    file, died = context.scratch / "tune.json", ErrorType.TUNER_EXECUTION_ERROR
    said = run_child("moe_tune_child", asked, file, env, context, TUNE_LINE, _WHAT, died)
    built = replace(_built(request, shape, context, said), env=own)
    _remove(context.layout, kernels)  # nothing but a tuning reads them, and this one is over
    return built


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


def _env(env: Mapping[str, str]) -> dict[str, str]:
    """SGLang's own configs are what ours are compared with, so none of ours may be in sight."""
    return {name: value for name, value in env.items() if name != _CONFIG_DIR}


def _built(request: StageRequest, shape: MoeShape, context: BuildContext, said: TunedLine) -> Built:
    """Writes the files and describes them."""
    layout = context.layout
    try:
        seed(layout, Path(said.shipped))
        config = write_config(layout, said.folder, said.name, said.files.up)
        written = [config]
        if said.files.down:
            written.append(write_config(layout, said.folder, said.down_name, said.files.down))
        facts = facts_of(layout, config, link_active(layout, request.model.slug, config))
    except OSError as error:
        raise StageError(os_error_type(error), f"{error.filename}: {error.strerror or error}") from None
    asked = [choice for choice in said.choices if choice.tokens in sizes_of(request.spec)]
    return Built(
        units=covered_units(request.spec, shape, said.choices),
        # One file. Of sizes tuned earlier it says what the log does, and there is none of a script, or of another host.
        whole=True,
        used=frozenset(str(path.relative_to(layout.profiles)) for path in written),
        compiled=tuple(f"M={choice.tokens} {choice.config or 'default'}" for choice in asked),
        warnings=(*said.warnings, *kept_aside(layout, config)),
        artifacts=facts.model_copy(update={"tuning": _tuning(request, shape, said.choices, said.counts)}),
    )


def _tuning(request: StageRequest, shape: MoeShape, choices: tuple[Choice, ...], counts: TuningCounts) -> Tuning:
    script = request.spec.moe_tuner_script
    return Tuning(
        tuner_version=None if script else TUNER_VERSION,
        strategy=label_of(request.spec),
        grid=f"that of {script}" if script else _grid(request.spec, shape),
        dtype=shape.dtype or shape.activation,
        seed=None if script else SEED,
        sizes=tuple(_tuned_size(choice) for choice in choices),
        **counts.model_dump(),
    )


def _grid(spec: PrepSpec, shape: MoeShape) -> str:
    each = {len(first_candidates(spec.moe_strategy, shape, size)) for size in sizes_of(spec)}
    told = " to ".join(str(count) for count in sorted({min(each), max(each)}))
    further = ", then neighbours of the best" if spec.moe_strategy is MoeStrategy.AUTO else ""
    return f"{told} configs for each batch size{further}"


def _tuned_size(choice: Choice) -> TunedSize:
    return TunedSize(
        batch_size=choice.tokens,
        default_us=_rounded(choice.stock_us),
        tuned_us=_rounded(choice.us),
        speedup=choice.speedup,
        config=choice.config.entry() if choice.config else None,
    )


def _rounded(us: float | None) -> float | None:
    """To nanoseconds, which no measurement is exact to."""
    return None if us is None else round(us, 3)


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
    # No server runs a losing kernel.
    own = {"TRITON_CACHE_DIR": str(kernels)}
    env = {**_env(context.env), **visible_env(context.host_gpus), **own}
    command = _script_command(request, shape, folder)
    status = run_command(command, env, context, partial(keep_line, context), _WHAT)
    found = sorted(path for path in folder.glob("E=*.json"))
    if status != 0 or not found:
        message = f"{request.spec.moe_tuner_script} ended with status {status} and left {len(found)} config files"
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, message, log_tail=log_tail(context))
    said = _read_script(request, shape, found[0])
    left = [str(size) for size in sizes_of(request.spec) if size not in said.files.up]
    nearest = f"the script tuned nothing for {', '.join(left)} tokens, which take the nearest size's config"
    built = _built(request, shape, context, said)
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


def _read_script(request: StageRequest, shape: MoeShape, file: Path) -> TunedLine:
    try:
        entries = _ENTRIES.validate_json(read_bytes(file))
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, f"{file.name} is no config file: {problem}") from None
    if not entries or not file.name.startswith(f"E={shape.experts},N={shape.width},"):
        what = f"is for other experts than {shape}" if entries else "has no entry"
        raise StageError(ErrorType.TUNER_EXECUTION_ERROR, f"{file.name} {what}")
    version = request.signature.triton_version or ""
    return TunedLine(
        name=file.name,
        down_name=f"{file.stem}_down.json",
        folder=f"triton_{version.replace('.', '_')}",
        triton_version=version,
        shipped=str(shipped_configs() or file.parent),
        files=ConfigFiles(up=entries),
        choices=tuple(
            Choice(tokens=size, config=config, us=None, stock_us=None) for size, config in sorted(entries.items())
        ),
        counts=TuningCounts(),
    )
