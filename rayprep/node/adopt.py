"""What a server used in caches that other stages answer for joins their completions, so that it is known there.

A plan is read off a model's config, and a server is the one that really knows. What it had to make itself is there
now, and a completion that did not list it would be shipped without it.
"""

from collections.abc import Collection, Mapping, Sequence

from rayprep.base.records import utc_now
from rayprep.host.layout import Layout
from rayprep.model.completion import Completion
from rayprep.model.stages import STAGES, StageName
from rayprep.node.completion_writer import new_completion
from rayprep.node.survey import Survey
from rayprep.sglang.gemm_shapes import GemmShape, missed_shapes
from rayprep.store.cache_watch import entry_name
from rayprep.store.completions import write_completion
from rayprep.store.scan import artifacts_of

ADOPTING = (StageName.DEEP_GEMM, StageName.FLASHINFER)


def adopt(
    survey: Survey,
    run_id: str,
    completions: Mapping[StageName, Completion],
    used: Collection[str],
    shapes: Sequence[GemmShape],
) -> dict[StageName, tuple[str, ...]]:
    """Adds what no completion listed, and writes those that change.

    Args:
        completions: of exactly this request's keys, as they are now.
        used: what a server that answered every request has read or made, below the profiles root.
        shapes: the DeepGEMM products that its log named.

    Returns:
        What each stage had missed, by name; only stages that missed something.
    """
    missed: dict[StageName, tuple[str, ...]] = {}
    for stage in ADOPTING:
        own = completions.get(stage)
        caches = {cache.value for cache in STAGES[stage].caches}
        extra = {path for path in used if path.partition("/")[0] in caches} - (own.artifacts.keys() if own else set())
        if not extra:
            continue
        missed[stage] = _missed_units(stage, own, extra, shapes)
        if stage in survey.request.spec.selected:
            _widen(survey, run_id, stage, own, extra, missed[stage])
    return missed


def _widen(
    survey: Survey, run_id: str, stage: StageName, own: Completion | None, extra: Collection[str], units: Sequence[str]
) -> None:
    decision = next(each for each in survey.plan.decisions if each.stage is stage)
    base = own or new_completion(survey, decision, run_id, utc_now())
    changes = {
        "outcome": "built",
        "reason": None,
        "units": tuple(sorted({*base.units, *units})),
        "missed": tuple(sorted({*base.missed, *units})),
    }
    write_completion(survey.layout, widened(survey.layout, base, extra).model_copy(update=changes))


def widened(layout: Layout, completion: Completion, extra: Collection[str]) -> Completion:
    """A completion that lists these files, too, as they are now."""
    artifacts = dict(sorted({**completion.artifacts, **artifacts_of(layout.profiles, extra)}.items()))
    return completion.model_copy(update={"artifacts": artifacts, "finished_at": utc_now()})


def _missed_units(
    stage: StageName, own: Completion | None, extra: Collection[str], shapes: Sequence[GemmShape]
) -> tuple[str, ...]:
    known = own.units if own else ()
    if stage is StageName.DEEP_GEMM:
        return tuple(str(shape) for shape in missed_shapes(known, shapes))
    return tuple(sorted({entry_name(path).rpartition("/")[2] for path in extra} - set(known)))
