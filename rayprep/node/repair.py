"""What must not be built upon, found and taken away before a stage builds.

A library loads whatever lies in its cache under the right name. So everything that a completion lists is hashed, what
differs goes, and so does what an aborted run has written and nobody lists: it may be half of a file.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rayprep.host.layout import Layout
from rayprep.model.caches import Entry, may_be_empty
from rayprep.model.completion import Completion
from rayprep.model.stages import STAGES, StageName
from rayprep.store.completions import read_completions
from rayprep.store.entries import find_places, group_entries, paths_in, remove_entry
from rayprep.store.markers import refresh_markers
from rayprep.store.moe_folder import keep_aside
from rayprep.store.scan import CacheScan
from rayprep.store.snapshot import wrong_hashes

CLOCK_MARGIN_S = 2.0
"""Between the clock that stamps a marker and the one that stamps its cache's files: one file system's, but coarse."""


@dataclass(frozen=True)
class Repair:
    """What was taken away, and what a rebuild had to leave since others list it too."""

    removed: frozenset[Entry] = frozenset()
    shared: frozenset[Entry] = frozenset()


def choose(
    own: Iterable[str], others: Iterable[str], wrong: Iterable[str], suspect: Iterable[str], *, rebuild: bool
) -> Repair:
    """The entries to remove. All arguments are paths below the profiles root.

    Args:
        own: what this stage's own completion lists.
        others: what all other completions list.
        wrong: listed files whose content is not what was listed.
        suspect: files of an aborted run that may be half written.
    """
    mine, theirs = set(group_entries(own)), set(group_entries(others))
    doomed = set(group_entries(wrong)) | (set(group_entries(suspect)) - mine - theirs)
    replaced = mine if rebuild else set()
    return Repair(removed=frozenset(doomed | (replaced - theirs)), shared=frozenset((replaced & theirs) - doomed))


def repair(
    layout: Layout,
    stage: StageName,
    own: Completion | None,
    scans: Iterable[CacheScan],
    since: float | None,
    unsound: Callable[[Sequence[str]], Sequence[str]],
    *,
    rebuild: bool,
) -> Repair:
    """Looks, and removes. For the holder of the store's lock.

    Args:
        since: the oldest moment at which an aborted run may have written, in seconds since the epoch; None for never.
        unsound: of files that are as new as that, those that cannot be built upon.

    Raises:
        OSError: something that has to go cannot be removed.
    """
    others = _others(layout, own)
    wrong = [path for each in ([own] if own else []) + others for path in wrong_hashes(layout.profiles, each)]
    caches = {cache.value for cache in STAGES[stage].caches}
    chosen = choose(
        own.artifacts if own else (),
        [path for each in others for path in each.artifacts],
        [path for path in wrong if path.partition("/")[0] in caches],
        _suspects(layout, scans, since, unsound) if since is not None else (),
        rebuild=rebuild,
    )
    doomed = find_places(layout.profiles, chosen.removed)
    keep_aside(layout, paths_in(doomed))
    for entry, places in doomed.items():
        remove_entry(layout, entry, places)
    refresh_markers(layout, stage)
    return chosen


def _others(layout: Layout, own: Completion | None) -> list[Completion]:
    found = [each for stage in StageName for each in read_completions(layout, stage)[0]]
    return [each for each in found if own is None or (each.stage, each.key) != (own.stage, own.key)]


def _suspects(
    layout: Layout, scans: Iterable[CacheScan], since: float, unsound: Callable[[Sequence[str]], Sequence[str]]
) -> list[str]:
    recent = _written_since(layout, scans, since)
    # A host that lost its power can leave files without content, whatever their library takes care of.
    filled = (path for path in recent if not may_be_empty(path))
    empty = [path for path in filled if os.lstat(layout.profiles / path).st_size == 0]
    return [*unsound(recent), *empty]


def _written_since(layout: Layout, scans: Iterable[CacheScan], since: float) -> list[str]:
    return [
        path
        for scan in scans
        for path in scan.files
        if os.lstat(layout.profiles / path).st_mtime >= since - CLOCK_MARGIN_S
    ]
