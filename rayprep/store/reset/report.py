"""What `rayprep reset` has done, or would do, and its report."""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from pydantic import Field

from rayprep.base.errors import HostUnfit
from rayprep.base.records import Record, Utc, utc_from_timestamp
from rayprep.model.caches import CacheName, Entry
from rayprep.model.stages import STAGES
from rayprep.store.reset.filters import DAY_S, Filters
from rayprep.store.reset.selection import Claim, Found, Kept, Mark, Store


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
        nothing = {"removed": (), "completions_dropped": (), "markers_dropped": (), "freed_bytes": 0}
        return self.model_copy(update=nothing).warned("not confirmed, so nothing was removed")

    def warned(self, warning: str) -> "ResetReport":
        """The same with one more warning."""
        return self.model_copy(update={"warnings": (*self.warnings, warning)})


def report_of(store: Store, outcome: Outcome, run_id: str, profiles_root: str, *, dry_run: bool) -> ResetReport:
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
        markers_dropped=tuple(map(_marker_path, outcome.markers)),
        freed_bytes=outcome.freed,
        kept=dict(kept),
        warnings=(*_blind_spots(store), *store.warnings, *outcome.failures, *_waiting_markers(store, removed)),
        complete=not outcome.failures,
    )


def _removed(entry: Found, now: float) -> RemovedEntry:
    return RemovedEntry(
        cache=entry.key[0],
        path=entry.name,
        bytes=entry.size,
        files=entry.files,
        age_days=round(max(0.0, now - entry.newest) / DAY_S, 3),
        slugs=tuple(sorted(entry.slugs)),
    )


def _blind_spots(store: Store) -> Iterator[str]:
    """The completions that cannot be read, and what is left alone for their sake."""
    for claim in store.claims:
        caches = [cache for cache in STAGES[claim.stage].caches if cache in store.filters.caches]
        if claim.opaque and caches:
            hidden = " and ".join(cache for cache in caches if cache in store.blind)
            so = f", so nothing is removed from {hidden}" if hidden else ""
            yield f"{claim.path} is damaged or of another format, and may name files unseen{so}"


def _waiting_markers(store: Store, removed: Set[Entry]) -> Iterator[str]:
    """The markers that stay although they were asked for."""
    finished = store.finished_markers(removed)
    for mark in store.asked_markers():
        if mark not in finished:
            stay = "stays, since what its aborted run wrote may still be there; `rayprep ensure` removes that"
            yield f"marker {_marker_path(mark)} {stay}"


def _marker_path(mark: Mark) -> str:
    """Below the profiles root."""
    return f".in_progress/{mark[0]}/{mark[1]}"
