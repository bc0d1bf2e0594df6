"""What lies in a store when `rayprep reset` looks: entries, completions and markers."""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.records import parse_utc
from rayprep.base.text import printable
from rayprep.host.layout import Layout
from rayprep.model.caches import CACHES, CacheName, Entry, entry_of
from rayprep.model.completion import COMPLETION_FORMAT, Completion
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from rayprep.store.entries import group_entries
from rayprep.store.markers import read_markers
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.selection import Claim, Found, Mark, Store
from rayprep.store.scan import scan_cache


def look(layout: Layout, filters: Filters) -> Store:
    """Looks at all that `filters` could mean.

    Raises:
        HostUnfit: completions or markers cannot be read, or parts of the store that are ours are links.
    """
    layout.refuse_strange_store()
    claims = _read_claims(layout)
    slugs: dict[Entry, set[str]] = defaultdict(set)
    for claim in claims:
        for key in claim.entries:
            slugs[key].add(claim.slug)
    warnings = [] if layout.profiles.is_dir() else [f"{layout.profiles} is not there"]
    now, found = time.time(), []
    for cache in filters.caches:
        for path, items in _find(layout.profiles, cache, warnings).items():
            found.append(_found((cache, path), items, frozenset(slugs[cache, path])))
    return Store(filters, now, tuple(found), tuple(claims), _marked_since(layout), tuple(warnings))


def all_there(layout: Layout, files: Iterable[str]) -> bool:
    paths = (layout.profiles / file for file in files)
    return all(path.is_file() and not path.is_symlink() for path in paths)


def _marked_since(layout: Layout) -> dict[Mark, float]:
    """Where a marker does not say since when, all may be its work."""
    return {
        mark: parse_utc(info.started_at).timestamp() if info.started_at else float("-inf")
        for mark, info in read_markers(layout).items()
    }


def _read_claims(layout: Layout) -> list[Claim]:
    claims = []
    for stage in StageName:
        folder = layout.completions(stage)
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            # It would look empty, and every entry as if nothing named it.
            raise HostUnfit(f"{folder} cannot be read", error_type=ErrorType.PERMISSIONS_UNEXPECTED)
        good, bad = read_completions(layout, stage)
        claims += [_claim(layout, each) for each in good]
        keys = [Path(each.path).stem for each in bad]
        claims += [Claim(stage, key, slug=key.rpartition("-tp")[0], opaque=True) for key in keys]
    return claims


def _claim(layout: Layout, completion: Completion) -> Claim:
    return Claim(
        stage=completion.stage,
        key=completion.key,
        slug=completion.identity.model_slug,
        files=tuple(completion.artifacts),
        entries=frozenset(group_entries(completion.artifacts)),
        skipped=completion.outcome == "skipped",
        broken=completion.outcome == "unsupported" or not all_there(layout, completion.artifacts),
        opaque=completion.schema_version != COMPLETION_FORMAT,
        finished=parse_utc(completion.finished_at).timestamp(),
    )


class _Item(NamedTuple):
    """A folder or a file in a cache."""

    path: str
    """Below the cache's folder."""
    is_folder: bool
    size: int
    written: float


def _find(profiles: Path, cache: CacheName, warnings: list[str]) -> Mapping[str, Sequence[_Item]]:
    """A cache's entries, those of nothing but locks or scratch too: the own folder of each, and all its files."""
    top = profiles / cache.value
    entries: dict[str, list[_Item]] = defaultdict(list)
    if top.is_symlink() or not top.is_dir():
        warnings += scan_cache(profiles, cache).warnings  # which says why
        return entries
    for item in _walk(str(top), warnings):
        if _stays(cache, item.path.split("/")):
            continue
        entry = entry_of(cache, f"{item.path}/." if item.is_folder else item.path)
        if entry == item.path or not item.is_folder:  # other folders hold entries, or lie in one
            entries[entry].append(item)
    return entries


def _stays(cache: CacheName, parts: Sequence[str]) -> bool:
    facts = CACHES[cache]
    return parts[0] == facts.users_dir or any(facts.reasons and part.endswith(facts.reasons) for part in parts)


def _walk(top: str, warnings: list[str]) -> Iterator[_Item]:
    """All that lies below `top`, except links, which are no part of any entry."""

    def unreadable(error: OSError) -> None:
        warnings.append(f"{printable(str(error.filename))} cannot be read: {error.strerror}")

    for place, folders, files in os.walk(top, onerror=unreadable):
        for path in (f"{place}/{name}" for name in (*folders, *files)):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue  # a server beside us renamed it
            except OSError as error:
                unreadable(error)
                continue
            if not stat.S_ISLNK(status.st_mode):
                is_folder = stat.S_ISDIR(status.st_mode)
                yield _Item(path[len(top) + 1 :], is_folder, status.st_size, status.st_mtime)


def _found(key: Entry, items: Sequence[_Item], slugs: frozenset[str]) -> Found:
    files = [item for item in items if not item.is_folder]
    return Found(
        key=key,
        name=printable("/".join(key)),
        places=tuple(item.path for item in items if not item.path.startswith(f"{key[1]}/")),
        size=sum(item.size for item in files),
        files=len(files),
        newest=max(item.written for item in files or items),  # a folder without a file is as old as itself
        slugs=slugs,
    )
