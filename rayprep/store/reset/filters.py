"""Which entries `rayprep reset` is asked for."""

import math

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record
from rayprep.model.caches import CacheName
from rayprep.model.stages import STAGES, StageName

DAY_S = 86400.0


class Filters(Record):
    """Which entries are asked for: those that fit every filter given."""

    stages: tuple[StageName, ...] = ()
    """Those whose caches are reset; empty means every cache."""
    older_than_days: float | None = None
    match_slug: str | None = None
    unreferenced: bool = False

    @property
    def caches(self) -> tuple[CacheName, ...]:
        return tuple(cache for stage in self.stages for cache in STAGES[stage].named) or tuple(CacheName)

    def fits(self, stage: StageName, slug: str) -> bool:
        """Whether a completion or a marker is of those that the filters mean."""
        return (not self.stages or stage in self.stages) and self.fits_slug(slug)

    def fits_slug(self, slug: str) -> bool:
        return self.match_slug is None or slug.startswith(self.match_slug)

    def fits_age(self, moment: float, now: float) -> bool:
        """Whether what was last written at `moment` is old enough. What comes from the future is not old."""
        return self.older_than_days is None or now - moment > self.older_than_days * DAY_S


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
