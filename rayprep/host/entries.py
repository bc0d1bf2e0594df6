"""Whole entries of a cache: what is removed is removed together, by its own name, never through a link."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rayprep.host.layout import Layout
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
    for cache, folder in {(entry[0], _plain_parent(profiles, entry)) for entry in places}:
        for path in folder.iterdir() if folder.is_dir() else ():
            below = path.relative_to(profiles / cache.value).as_posix()
            # A folder nearer to the root than entries are holds others' entries, though it may have an entry's name.
            owners = {entry_of(cache, f"{below}/.")} | (set() if _is_folder(path) else {entry_of(cache, below)})
            for owner in owners:
                if (cache, owner) in places:
                    places[cache, owner].append(below)
    return places


def remove_entry(layout: Layout, entry: Entry, places: Sequence[str]) -> None:
    """Removes the entry that `places` make up. For whoever holds the store's lock, and clears the scratch folder after.

    Raises:
        OSError: something of it cannot be removed, or it lies elsewhere than its name says.
    """
    top, folder = layout.cache(entry[0]), _plain_parent(layout.profiles, entry)
    for path in (top / place for place in places):
        if _is_folder(path):
            _remove_folder(path, layout.scratch)
        else:
            path.unlink(missing_ok=True)
    if still_there(top, places):
        raise FileExistsError(errno.EEXIST, "it was written again meanwhile", f"{top}/{entry[1]}")
    with contextlib.suppress(OSError):  # another entry is in it
        while folder != top:
            folder.rmdir()
            folder = folder.parent


def still_there(top: Path, places: Iterable[str]) -> bool:
    """Whether anything is left of an entry in the cache at `top`."""
    return any(os.path.lexists(top / place) for place in places)


def _plain_parent(profiles: Path, entry: Entry) -> Path:
    """The folder that the entry lies in: in its cache, and behind no link."""
    top, below = profiles / entry[0].value, entry[1]
    parent = (top / below).parent
    # The name as it is written, since pathlib would take `//etc` for `/etc`, and an empty one for the whole cache.
    plain = {"", ".", ".."}.isdisjoint(below.split("/"))
    if not plain or any(part.is_symlink() for part in (parent, *parent.parents) if part.is_relative_to(top)):
        raise OSError(errno.ELOOP, f"it does not lie in {top} by plain folders", f"{top}/{below}")
    return parent


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_folder(path: Path, scratch: Path) -> None:
    """Takes it out of its cache in one step, so that a kill leaves no half entry, which some libraries die of."""
    for place, _, _ in os.walk(path, onerror=_raise):
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="entry.", dir=scratch))
        path.rename(aside)  # which replaces an empty folder
    except OSError as error:
        if error.errno not in _IN_PLACE:
            raise
        aside = path
    shutil.rmtree(aside)


def _raise(error: OSError) -> None:
    raise error
