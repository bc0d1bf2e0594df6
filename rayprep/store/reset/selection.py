"""What lies in a store when `rayprep reset` looks, and the pure choice of what goes."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from rayprep.model.caches import CacheName, Entry
from rayprep.model.stages import STAGES, StageName
from rayprep.store.reset.filters import Filters


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
    """It lists a file that was not there to begin with, or lists none since the stage failed."""
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
    warnings: tuple[str, ...] = ()
    """What could not be seen, for people."""

    @cached_property
    def verdicts(self) -> list[tuple[Found, Kept | None]]:
        """Each entry with the reason why it stays, or with none."""
        return [(entry, self._why_kept(entry)) for entry in self.found]

    @property
    def victims(self) -> list[Found]:
        return [entry for entry, reason in self.verdicts if reason is None]

    def _why_kept(self, entry: Found) -> Kept | None:
        filters, cache = self.filters, entry.key[0]
        rules = {
            Kept.UNREFERENCED: filters.match_slug is not None and not entry.slugs,
            Kept.OTHER_SLUG: not all(map(filters.fits_slug, entry.slugs)),
            Kept.REFERENCED: filters.unreferenced and bool(entry.slugs),
            Kept.NOT_OLD: not filters.fits_age(entry.newest, self.now),
            Kept.UNREADABLE: cache in self.blind,
        }
        return next((reason for reason, holds in rules.items() if holds), None)

    @cached_property
    def blind(self) -> Set[CacheName]:
        """Caches in which a completion that we cannot read may name entries that would go by what we can read."""
        return {
            cache
            for claim in self.claims
            if claim.opaque and (self.filters.unreferenced or not self.filters.fits_slug(claim.slug))
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
            everything = filters.older_than_days is None and filters.match_slug is None
            return everything and left.isdisjoint(STAGES[claim.stage].caches)
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
        return [mark for mark in self.asked_markers() if not any(self._may_be_work_of(mark, entry) for entry in left)]

    def _may_be_work_of(self, mark: Mark, entry: Found) -> bool:
        slug, stage = mark
        in_reach = entry.key[0] in STAGES[stage].caches and entry.slugs <= {slug}
        return in_reach and entry.newest >= self.markers[mark]
