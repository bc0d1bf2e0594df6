"""What comes of a tuning: the files that a server reads, and what the result says of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rayprep.base.errors import StageError
from rayprep.host.layout import Layout, os_error_type
from rayprep.model.caches import CacheName
from rayprep.model.result import Artifacts
from rayprep.model.spec import MoeStrategy, PrepSpec
from rayprep.model.tuning import OF_A_SCRIPT, TunedSize, Tuning, TuningCounts
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.files import config_text, facts_of, kept_aside, link_active, place_config, seed
from rayprep.stages.moe_tune.protocol import TunedLine
from rayprep.stages.moe_tune.search import SEED, TUNER_VERSION, WORTH, Choice, first_candidates, tuning_digest
from rayprep.stages.moe_tune.units import covered_units, label_of, sizes_of, tuner_of
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.moe_folder import drop_dangling_links
from rayprep.store.moe_withdrawn import refuse_withdrawn, release


def built_of(request: StageRequest, shape: MoeShape, context: BuildContext, said: TunedLine) -> Built:
    """Writes the files and describes them."""
    layout = context.layout
    contents = _contents(said)
    digest = tuning_digest(request.signature, shape)
    refuse_withdrawn(layout, digest, [content for content in contents.values() if content])
    try:
        placed = {place_config(layout, said.folder, name, content): content for name, content in contents.items()}
        seed(layout, Path(said.shipped))
        written = [path for path, content in placed.items() if content is not None]
        facts = _facts(request, layout, written)
        release(layout, digest, tuner_of(request.spec))
    except OSError as error:
        raise StageError(os_error_type(error), f"{error.filename}: {error.strerror or error}") from None
    asked = [choice for choice in said.choices if choice.tokens in sizes_of(request.spec)]
    return Built(
        units=covered_units(request.spec, shape, said.choices),
        # One file. Of sizes tuned earlier it says what the log does, and there is none of a script, or of another host.
        whole=True,
        may_be_empty=True,
        used=frozenset(str(path.relative_to(layout.profiles)) for path in written),
        compiled=tuple(f"M={choice.tokens} {choice.config or 'default'}" for choice in asked),
        warnings=(*said.warnings, *_warnings(said), *kept_aside(layout, next(iter(placed)))),
        artifacts=facts.model_copy(
            update={"tuning": _tuning(request, shape, said.choices, said.counts), "refused": said.refused or None}
        ),
    )


def _contents(said: TunedLine) -> dict[str, bytes | None]:
    """Of the config file and its `_down` twin, by name; None where there is to be none of ours."""
    up, down = (said.files.up, said.files.down) if said.files else (None, None)
    return {said.name: config_text(up) if up else None, said.down_name: config_text(down) if down else None}


def _facts(request: StageRequest, layout: Layout, written: Sequence[Path]) -> Artifacts:
    if written:
        return facts_of(layout, written[0], link_active(layout, request.model.slug, written[0]))
    drop_dangling_links(layout)
    return Artifacts(cache_dir=layout.located(layout.cache(CacheName.MOE_CONFIGS)))


def _warnings(said: TunedLine) -> Iterator[str]:
    for entry in said.refused:
        instead = "SGLang's own values are in its place" if entry.own_runs else "its neighbours' entries count"
        yield f"the entry for {entry.batch_size} tokens cannot be launched, and {instead}: {entry.error}"
    if said.files is None:
        why = "no entry is left" if said.refused else f"no batch size gains {WORTH - 1:.0%}"
        yield f"{why}, and SGLang's own configs stay in use"


def _tuning(request: StageRequest, shape: MoeShape, choices: tuple[Choice, ...], counts: TuningCounts) -> Tuning:
    script = request.spec.moe_tuner_script
    return Tuning(
        tuner_version=None if script else TUNER_VERSION,
        strategy=label_of(request.spec),
        grid=f"{OF_A_SCRIPT}{script}" if script else _grid(request.spec, shape),
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
