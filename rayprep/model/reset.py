"""What `rayprep reset` removes and what it leaves: the filters, the pure choice, and the report."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from pydantic import Field

from rayprep.model.base import Record, Utc, utc_from_timestamp
from rayprep.model.caches import CacheName
from rayprep.model.errors import BadRequest, HostUnfit
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName

_DAY_S = 86400.0

Entry = tuple[CacheName, str]
"""A cache and the entry's path below its folder."""


class Filters(Record):
    """Which entries are asked for: those that fit every filter given."""

    stages: tuple[StageName, ...] = ()
    """Those whose caches are reset; empty means every cache, the ones that no stage fills too."""
    older_than_days: float | None = None
    match_slug: str | None = None
    unreferenced: bool = False

    @property
    def caches(self) -> tuple[CacheName, ...]:
        return tuple(cache for stage in self.stages for cache in STAGES[stage].caches) or tuple(CacheName)

    @property
    def unlimited(self) -> bool:
        """No filter is given: the whole caches go."""
        return self.older_than_days is None and self.match_slug is None and not self.unreferenced

    def fits(self, stage: StageName, slug: str) -> bool:
        """Whether a completion or a marker is of those that the filters mean."""
        return (not self.stages or stage in self.stages) and self.fits_slug(slug)

    def fits_slug(self, slug: str) -> bool:
        return self.match_slug is None or slug.startswith(self.match_slug)

    def fits_age(self, moment: float, now: float) -> bool:
        """Whether what was last written at `moment` is old enough. What comes from the future is not old."""
        return self.older_than_days is None or now - moment > self.older_than_days * _DAY_S


def make_filters(
    stages: tuple[StageName, ...], older_than_days: float | None, match_slug: str | None, unreferenced: bool
) -> Filters:
    """Raises BadRequest for an age that is none, and for a prefix that is empty."""
    if older_than_days is not None and not 0 < older_than_days < math.inf:
        raise BadRequest(f"--older-than {older_than_days:g} is no age", hint="give a number of days above 0")
    if match_slug == "":
        # Mostly an unset variable of a script, which must not turn into "every slug".
        raise BadRequest("--match-slug is empty", hint="give the first letters of a slug, or leave the flag out")
    slug = match_slug.lower() if match_slug else None  # as slugs are
    return Filters(stages=stages, older_than_days=older_than_days, match_slug=slug, unreferenced=unreferenced)


@dataclass(frozen=True)
class Found:
    """One entry as it lies there, with everything in it: locks, scratch and ninja's own files, too."""

    key: Entry
    name: str
    """Its path below the profiles root, as text; bytes that are not UTF-8 are written as `\\xNN`."""
    places: tuple[str, ...]
    """What makes it up, below the cache's folder: its own folder, and the files that share its name."""
    size: int
    files: int
    newest: float
    """When its newest file was written."""
    slugs: frozenset[str]
    """Of the completions that name it."""


@dataclass(frozen=True)
class Claim:
    """A completion, as a reset sees it."""

    stage: StageName
    key: str
    slug: str
    files: tuple[str, ...] = ()
    entries: frozenset[Entry] = frozenset()
    skipped: bool = False
    broken: bool = False
    """It lists a file that was not there to begin with."""
    opaque: bool = False
    """It cannot be read, or is of another format: it may name files that we cannot see."""
    finished: float = 0.0

    @property
    def path(self) -> str:
        """Below the profiles root."""
        return f".rayprep/{self.stage}/{self.key}.json"


class Kept(StrEnum):
    """Why an entry of a selected cache stays."""

    UNREFERENCED = "named_by_no_completion"
    OTHER_SLUG = "named_by_another_slug"
    REFERENCED = "named_by_a_completion"
    NO_STAGE = "no_stage_answers_for_its_cache"
    NOT_OLD = "not_old_enough"
    UNREADABLE = "completion_unreadable"
    FAILED = "could_not_be_removed"


Mark = tuple[str, StageName]
"""A marker: its slug and stage."""


@dataclass(frozen=True)
class Store:
    """Everything that lies there when a reset looks."""

    filters: Filters
    now: float
    found: tuple[Found, ...]
    claims: tuple[Claim, ...] = ()
    markers: Mapping[Mark, float] = field(default_factory=dict)
    """With the moment since which each stands."""

    @cached_property
    def verdicts(self) -> list[tuple[Found, Kept | None]]:
        """Each entry with the reason why it stays, or with none."""
        return [(entry, self._why_kept(entry)) for entry in self.found]

    @property
    def victims(self) -> list[Found]:
        return [entry for entry, reason in self.verdicts if reason is None]

    def _why_kept(self, entry: Found) -> Kept | None:
        filters, cache = self.filters, entry.key[0]
        by_slug = filters.match_slug is not None
        rules = {
            Kept.UNREFERENCED: by_slug and not entry.slugs,
            Kept.OTHER_SLUG: by_slug and not all(map(filters.fits_slug, entry.slugs)),
            Kept.REFERENCED: filters.unreferenced and bool(entry.slugs),
            # No completion ever names an entry there, so it says nothing that none does.
            Kept.NO_STAGE: filters.unreferenced and cache not in ANSWERS_FOR,
            Kept.NOT_OLD: not filters.fits_age(entry.newest, self.now),
            Kept.UNREADABLE: cache in self.blind,
        }
        return next((reason for reason, holds in rules.items() if holds), None)

    @cached_property
    def blind(self) -> Set[CacheName]:
        """Caches in which a completion that we cannot read may name entries that would go by what we can read."""
        by_slug, unreferenced = self.filters.match_slug is not None, self.filters.unreferenced
        return {
            cache
            for claim in self.claims
            if claim.opaque and (unreferenced or (by_slug and not self.filters.fits_slug(claim.slug)))
            for cache in STAGES[claim.stage].caches
        }

    def stale_claims(self, removed: Set[Entry]) -> list[Claim]:
        """The completions that no longer hold once `removed` is gone.

        Beside those that name one of these: `skipped` ones of a matching slug; and, unless only a part is asked for,
        those that were broken before. With an age these stay, since they tell the next build what to repair.
        """
        left = {entry.key[0] for entry in self.found if entry.key not in removed}
        return [each for each in self.claims if not each.entries.isdisjoint(removed) or self._is_over(each, left)]

    def _is_over(self, claim: Claim, left: Set[CacheName]) -> bool:
        filters = self.filters
        if filters.unreferenced or not filters.fits(claim.stage, claim.slug):
            return False
        if claim.opaque:
            return filters.unlimited and left.isdisjoint(STAGES[claim.stage].caches)
        if claim.skipped:
            return filters.match_slug is not None and filters.fits_age(claim.finished, self.now)
        return claim.broken and filters.older_than_days is None

    def asked_markers(self) -> list[Mark]:
        """With an age or --unreferenced none: these clear away, and leave what a run has begun to the next run."""
        if self.filters.older_than_days is not None or self.filters.unreferenced:
            return []
        return [(slug, stage) for slug, stage in self.markers if self.filters.fits(stage, slug)]

    def finished_markers(self, removed: Set[Entry]) -> list[Mark]:
        """Those whose aborted run has left nothing once `removed` is gone.

        A marker makes the next build remove what the aborted run wrote, so it stays while any of that may be there.
        """
        left = [entry for entry in self.found if entry.key not in removed]

        def may_be_its_work(entry: Found, slug: str, stage: StageName) -> bool:
            since = self.markers[slug, stage]
            return entry.key[0] in STAGES[stage].caches and entry.newest >= since and entry.slugs <= {slug}

        return [mark for mark in self.asked_markers() if not any(may_be_its_work(entry, *mark) for entry in left)]

    def blind_spots(self) -> list[str]:
        """The completions that cannot be read, and what is left alone for their sake, for people."""
        said = []
        for claim in self.claims:
            caches = [cache for cache in STAGES[claim.stage].caches if cache in self.filters.caches]
            if claim.opaque and caches:
                hidden = " and ".join(cache for cache in caches if cache in self.blind)
                so = f", so nothing is removed from {hidden}" if hidden else ""
                said.append(f"{claim.path} is damaged or of another format, and may name files unseen{so}")
        return said

    def waiting_markers(self, removed: Set[Entry]) -> list[str]:
        """Those that stay although they were asked for, for people."""
        stay = "stays, since what its aborted run wrote may still be there; `rayprep ensure` removes that"
        finished = self.finished_markers(removed)
        return [f"marker {marker_path(mark)} {stay}" for mark in self.asked_markers() if mark not in finished]


def marker_path(mark: Mark) -> str:
    """Below the profiles root."""
    return f".in_progress/{mark[0]}/{mark[1]}"


@dataclass
class Outcome:
    """What a reset has done so far, or would do."""

    removed: list[Found] = field(default_factory=list)
    completions: list[Claim] = field(default_factory=list)
    markers: list[Mark] = field(default_factory=list)
    freed: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def keys(self) -> frozenset[Entry]:
        return frozenset(entry.key for entry in self.removed)


def planned(store: Store) -> Outcome:
    """The outcome if everything that is chosen can be removed."""
    outcome = Outcome(store.victims, freed=sum(entry.size for entry in store.victims))
    outcome.completions = store.stale_claims(outcome.keys)
    outcome.markers = store.finished_markers(outcome.keys)
    return outcome


class RemovedEntry(Record):
    cache: CacheName
    path: str
    bytes: int
    files: int
    age_days: float
    """Since its newest file was written."""
    slugs: tuple[str, ...]
    """Of the completions that named it."""


class ResetReport(Record):
    """What a reset did, or with `dry_run` what it would do. Paths are below the profiles root."""

    schema_version: str = "1"
    run_id: str
    dry_run: bool
    taken_at: Utc
    profiles_root: str
    filters: Filters
    removed: tuple[RemovedEntry, ...]
    completions_dropped: tuple[str, ...]
    markers_dropped: tuple[str, ...]
    freed_bytes: int
    kept: dict[Kept, int] = Field(default_factory=dict)
    """Entries of the selected caches that stay, by reason."""
    warnings: tuple[str, ...]
    complete: bool
    """False where something that should have gone is still there."""

    @property
    def exit_code(self) -> int:
        return 0 if self.complete else HostUnfit.exit_code

    @property
    def empty(self) -> bool:
        return not (self.removed or self.completions_dropped or self.markers_dropped)

    def declined(self) -> "ResetReport":
        """The same with nothing done."""
        nothing = dict.fromkeys(("removed", "completions_dropped", "markers_dropped"), ())
        warnings = (*self.warnings, "not confirmed, so nothing was removed")
        return self.model_copy(update={**nothing, "freed_bytes": 0, "warnings": warnings})


def report_of(
    store: Store, outcome: Outcome, run_id: str, profiles_root: str, *, dry_run: bool, warnings: Iterable[str] = ()
) -> ResetReport:
    removed = outcome.keys
    kept = Counter(reason or Kept.FAILED for entry, reason in store.verdicts if entry.key not in removed)
    return ResetReport(
        run_id=run_id,
        dry_run=dry_run,
        taken_at=utc_from_timestamp(store.now),
        profiles_root=profiles_root,
        filters=store.filters,
        removed=tuple(_removed(entry, store.now) for entry in outcome.removed),
        completions_dropped=tuple(claim.path for claim in outcome.completions),
        markers_dropped=tuple(map(marker_path, outcome.markers)),
        freed_bytes=outcome.freed,
        kept=dict(kept),
        warnings=(*store.blind_spots(), *warnings, *outcome.failures, *store.waiting_markers(removed)),
        complete=not outcome.failures,
    )


def _removed(entry: Found, now: float) -> RemovedEntry:
    return RemovedEntry(
        cache=entry.key[0],
        path=entry.name,
        bytes=entry.size,
        files=entry.files,
        age_days=round(max(0.0, now - entry.newest) / _DAY_S, 3),
        slugs=tuple(sorted(entry.slugs)),
    )
