"""Moves proved files into the caches, an entry by a rename, never through a link. For who holds the store's lock."""

import ctypes
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.host.owned import Places
from rayprep.model.caches import Entry
from rayprep.model.completion import Completion
from rayprep.model.stages import STAGES, StageName
from rayprep.store.completions import read_completions
from rayprep.store.entries import find_places, group_entries, paths_in, remove_entry
from rayprep.store.moe_folder import keep_aside
from rayprep.store.package.placement import Placement
from rayprep.store.scan import files_of, scan_cache

CLOCK_MARGIN_S = 2.0
"""Between the clock that stamps a marker and the one that stamps its cache's files."""


def clear_aborted(
    layout: Layout, marked: Mapping[tuple[str, StageName], float], arriving: Iterable[Completion]
) -> None:
    """Takes away what an aborted build may have left half written, for who is about to remove the marker that says so.

    All that is as new as its marker and that nobody lists, without a look at what it is: it can be built again.

    Args:
        marked: the markers that stood, with since when, in seconds since the epoch.

    Raises:
        OSError: something of it cannot be removed.
    """
    if not marked:
        return
    completions = [each for stage in StageName for each in read_completions(layout, stage)[0]]
    listed = group_entries(path for each in (*completions, *arriving) for path in each.artifacts)
    doomed: set[Entry] = set()
    for (_, stage), since in marked.items():
        scans = [scan_cache(layout.profiles, cache) for cache in STAGES[stage].caches]
        doomed |= set(group_entries(path for path in files_of(scans) if _newer(layout.profiles / path, since)))
    going = find_places(layout.profiles, doomed - listed.keys())
    keep_aside(layout, paths_in(going))
    for entry, places in going.items():
        remove_entry(layout, entry, places)


def _newer(path: Path, since: float) -> bool:
    return path.lstat().st_mtime >= since - CLOCK_MARGIN_S


def move_in(layout: Layout, fresh: Path, placement: Placement) -> None:
    """Renames what `placement` names from `fresh`, where it lies under its path below the profiles root.

    Raises:
        OSError: something cannot be renamed, or does not lie where its name says.
    """
    # Which also proves that no entry lies behind a link.
    places = find_places(layout.profiles, (*placement.whole, *placement.single))
    with Places(layout.caches) as there, Places(layout.caches) as aside:
        for entry, files in placement.whole.items():
            if places[entry]:
                remove_entry(layout, entry, places[entry])
                there.forget()  # it takes empty folders along
            for name in sorted({_top(entry, path) for path in files}):
                _rename(fresh, layout.profiles, name, aside, there)
        for files in placement.single.values():
            for path in sorted(files):
                _rename(fresh, layout.profiles, path, aside, there)


def _rename(fresh: Path, profiles: Path, path: str, aside: Places, there: Places) -> None:
    folder, _, name = path.rpartition("/")
    source, target = aside.folder(f"{fresh}/{folder}"), there.folder(f"{profiles}/{folder}", make=True)
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


def _top(entry: Entry, path: str) -> str:
    """What is renamed to bring `path` in: its entry's folder, or the file itself where the entry is files."""
    folder = f"{entry[0]}/{entry[1]}"
    return folder if path.startswith(f"{folder}/") else path


def sync(folder: Path) -> None:
    """Puts the data of the folder's file system on its disk.

    One syncfs(2), which Python does not offer, in place of an fsync for each of 20,000 files. Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)
