"""Whole entries of a cache: what is removed is removed together, by its own name, never through a link."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from rayprep.model.caches import CacheName, entry_of
from rayprep.model.errors import ErrorType, StageError

Entry = tuple[CacheName, str]
"""A cache and the entry's path below its folder."""


def group_entries(files: Iterable[str]) -> dict[Entry, list[str]]:
    """Paths below the profiles root, by the entry that each belongs to. Paths in no cache are left out."""
    entries: dict[Entry, list[str]] = defaultdict(list)
    caches = {cache.value: cache for cache in CacheName}
    for path in files:
        folder, _, below = path.partition("/")
        if folder in caches and below:
            entries[caches[folder], entry_of(caches[folder], below)].append(path)
    return dict(entries)


def entry_bytes(entries: Mapping[Entry, list[str]], files: Mapping[str, int], entry: Entry) -> int:
    return sum(files.get(path, 0) for path in entries[entry])


def remove_entry(profiles: Path, entry: Entry) -> None:
    """Removes one entry: its folder, or the files of its stem.

    Raises:
        OSError: something of it cannot be removed.
        StageError: the path would lead out of the cache's folder, or through a link.
    """
    cache, below = entry
    top = profiles / cache.value
    path = top / below
    # As it is written, since pathlib would take `//etc` for `/etc`, and an empty name for the whole cache.
    plain = {"", ".", ".."}.isdisjoint(below.split("/"))
    if not plain or any(part.is_symlink() for part in (top, *path.parents) if part.is_relative_to(top)):
        raise StageError(ErrorType.PERMISSIONS_UNEXPECTED, f"{path} does not lie in {top} by plain folders")
    # A folder nearer to the root than entries are holds others' entries, though it may have this one's name.
    if entry_of(cache, f"{below}/.") == below and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    for file in list(path.parent.glob("*")) if path.parent.is_dir() else []:
        if (file.name.split(".", 1)[0] or file.name) == path.name and not file.is_dir():
            file.unlink(missing_ok=True)
    _remove_empty_folders(path.parent, top)


def _remove_empty_folders(folder: Path, top: Path) -> None:
    while folder != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
