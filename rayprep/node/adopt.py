"""What a server made in caches that other stages answer for: it joins their completions, so that it is known there.

A plan is read off a model's config, and a server is the one that really knows. What it had to make itself is there
now, and a completion that did not list it would be shipped without it.
"""

from collections.abc import Mapping, Sequence

from rayprep.host.completions import write_completion
from rayprep.host.scan import hash_files, scan_cache
from rayprep.model.base import utc_now
from rayprep.model.caches import CacheName, entry_of
from rayprep.model.completion import Completion
from rayprep.model.gemm import GemmShape, missed_shapes
from rayprep.model.stages import STAGES, StageName
from rayprep.node.collect import new_completion
from rayprep.node.survey import Survey

ADOPTING = (StageName.DEEP_GEMM, StageName.FLASHINFER)


class Adoption:
    """Taken before a server starts; `after` tells what the server has added."""

    def __init__(self, survey: Survey, run_id: str) -> None:
        self._survey, self._run_id = survey, run_id
        self._started_at = utc_now()
        self._before = {stage: _files(survey, stage) for stage in ADOPTING}

    def after(
        self, completions: Mapping[StageName, Completion], shapes: Sequence[GemmShape]
    ) -> dict[StageName, tuple[str, ...]]:
        """Adds what is new to the completions, and writes those that change.

        Args:
            completions: of exactly this request's keys, as they are now.
            shapes: the DeepGEMM products that the server's log named.

        Returns:
            What each stage had missed, by name; only stages that missed something.
        """
        missed: dict[StageName, tuple[str, ...]] = {}
        for stage in ADOPTING:
            now = _files(self._survey, stage)
            own = completions.get(stage)
            known = own.artifacts if own else {}
            new = [path for path, size in now.items() if self._before[stage].get(path) != size and path not in known]
            units = _missed_units(stage, own, new, shapes)
            if new or units:
                missed[stage] = units
                if stage in self._selected():
                    self._widen(stage, own, {path: now[path] for path in new}, units)
        return missed

    def _selected(self) -> tuple[StageName, ...]:
        return self._survey.request.spec.selected

    def _widen(self, stage: StageName, own: Completion | None, new: Mapping[str, int], units: tuple[str, ...]) -> None:
        decision = next(each for each in self._survey.plan.decisions if each.stage is stage)
        base = own or new_completion(self._survey, decision, self._run_id, self._started_at)
        hashes = hash_files(self._survey.layout.profiles, new)
        added = {path: (new[path], digest) for path, digest in hashes.items()}
        widened = base.model_copy(
            update={
                "outcome": "built",
                "reason": None,
                "units": tuple(sorted({*base.units, *units})),
                "missed": tuple(sorted({*base.missed, *units})),
                "artifacts": dict(sorted({**base.artifacts, **added}.items())),
                "finished_at": utc_now(),
            }
        )
        write_completion(self._survey.layout, widened)


def _files(survey: Survey, stage: StageName) -> dict[str, int]:
    scans = (scan_cache(survey.layout.profiles, cache) for cache in STAGES[stage].caches)
    return {path: size for scan in scans for path, size in scan.files.items()}


def _missed_units(
    stage: StageName, own: Completion | None, new: Sequence[str], shapes: Sequence[GemmShape]
) -> tuple[str, ...]:
    if stage is StageName.DEEP_GEMM:
        # A product that is named and was not planned may have been in the cache for another model all the same.
        return tuple(str(shape) for shape in missed_shapes(own.units if own else (), shapes))
    entries = {entry_of(CacheName.FLASHINFER, path.partition("/")[2]).rpartition("/")[2] for path in new}
    return tuple(sorted(entries - set(own.units if own else ())))
