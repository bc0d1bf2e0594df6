"""Whole entries of a cache: what is removed is removed together, by its own name, never through a link."""

import contextlib
import errno
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rayprep.host.layout import Layout, make_scratch
from rayprep.model.caches import CacheName, Entry, entry_of

_IN_PLACE = (errno.EXDEV, errno.ENOSPC, errno.EDQUOT)
"""A folder cannot be moved aside but can be removed: its cache is a mount of its own, or the disk is full."""


def group_entries(files: Iterable[str]) -> dict[Entry, list[str]]:
    """Paths below the profiles root, by the entry that each belongs to. Paths in no cache are left out."""
    entries: dict[Entry, list[str]] = defaultdict(list)
    caches = {cache.value: cache for cache in CacheName}
    for path in files:
        folder, _, below = path.partition("/")
        if folder in caches and below:
            entries[caches[folder], entry_of(caches[folder], below)].append(path)
    return dict(entries)


def find_places(profiles: Path, entries: Iterable[Entry]) -> dict[Entry, list[str]]:
    """What makes up each entry, below its cache's folder: its own folder, and the files and links of its name.

    A folder is listed once, however many of the entries lie in it.

    Raises:
        OSError: a folder cannot be listed, or an entry lies elsewhere than its name says.
    """
    places: dict[Entry, list[str]] = {entry: [] for entry in entries}
    for cache, folder in {(entry[0], _parent(profiles, entry)) for entry in places}:
        for found in _list(plain_folder(profiles / cache.value, folder)):
            below = f"{folder}/{found.name}" if folder else found.name
            owners = {entry_of(cache, f"{below}/.")}
            # A folder nearer to the root than entries are holds others' entries, though it may have an entry's name.
            if not found.is_dir(follow_symlinks=False):
                owners.add(entry_of(cache, below))
            for owner in owners:
                if (cache, owner) in places:
                    places[cache, owner].append(below)
    return places


def paths_in(places: Mapping[Entry, Sequence[str]]) -> Iterator[str]:
    """What makes up the entries, below the profiles root."""
    return (f"{entry[0]}/{place}" for entry, found in places.items() for place in found)


def _list(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_entry(layout: Layout, entry: Entry, places: Sequence[str]) -> None:
    """Removes the entry that `places` make up. For whoever holds the store's lock, and clears the scratch folder after.

    Raises:
        OSError: something of it cannot be removed, or it lies elsewhere than its name says.
    """
    top = layout.cache(entry[0])
    folder = plain_folder(top, _parent(layout.profiles, entry))
    for path in (top / place for place in places):
        if _is_folder(path):
            _remove_folder(layout, path)
        else:
            layout.caches.unlink(path, missing_ok=True)
    if still_there(top, places):
        raise FileExistsError(errno.EEXIST, "it was written again meanwhile", f"{top}/{entry[1]}")
    with contextlib.suppress(OSError):  # another entry is in it
        while folder != top:
            layout.caches.rmdir(folder)
            folder = folder.parent


def still_there(top: Path, places: Iterable[str]) -> bool:
    """Whether anything is left of an entry in the cache at `top`."""
    return any(os.path.lexists(top / place) for place in places)


def _parent(profiles: Path, entry: Entry) -> str:
    """The folder that the entry lies in, below its cache's, by its name."""
    cache, below = entry
    # The name as it is written, since pathlib would take `//etc` for `/etc`, and an empty one for the whole cache.
    if not {"", ".", ".."}.isdisjoint(below.split("/")):
        raise _elsewhere(profiles / cache.value, below)
    return below.rpartition("/")[0]


def plain_folder(top: Path, below: str) -> Path:
    """The folder `below` the cache at `top`, which is behind no link. It need not be there.

    Raises:
        OSError: it is a link, or behind one.
    """
    folder = top / below
    if any(part.is_symlink() for part in (folder, *folder.parents) if part.is_relative_to(top)):
        raise _elsewhere(top, below)
    return folder


def _elsewhere(top: Path, below: str) -> OSError:
    return OSError(errno.ELOOP, f"it does not lie in {top} by plain folders", f"{top}/{below}")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_folder(layout: Layout, path: Path) -> None:
    """Takes it out of its cache in one step, so that a kill leaves no half entry, which some libraries die of."""
    for place, _, _ in os.walk(path, onerror=_raise):
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
    aside = layout.scratch / f"entry.{secrets.token_hex(6)}"
    try:
        make_scratch(layout)
        layout.caches.rename(path, aside)
    except OSError as error:
        if error.errno not in _IN_PLACE:
            raise
        aside = path
    layout.caches.remove(aside)


def _raise(error: OSError) -> None:
    raise error
