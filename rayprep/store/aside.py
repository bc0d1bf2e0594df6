"""Entries of a cache that are out of every library's sight while a server is tried without them."""

import contextlib
import errno
import secrets
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from rayprep.host.layout import Layout, make_scratch
from rayprep.model.blame import Blame
from rayprep.model.caches import CacheName, Entry
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.entries import find_places, group_entries, paths_in
from rayprep.store.moe_folder import keep_aside, put_back_shipped
from rayprep.store.scan import artifacts_of, scan_cache

_WITHIN = "tmp/rayprep.aside"
"""In a cache's folder, where no scan looks for artifacts."""


class Aside:
    """For whoever holds the store's lock, and clears the scratch folder after: a kill loses what is here."""

    def __init__(self, layout: Layout, blame: Blame, before: float) -> None:
        """Moves what is blamed away; where no path is named, what is older than `before`, in seconds since the epoch.

        Raises:
            OSError: one cannot be moved. All are back then.
        """
        self._layout, self._blame = layout, blame
        self._homes = [layout.scratch / f"aside.{secrets.token_hex(6)}"]
        """The first takes all but what lies on another file system."""
        self._moved: dict[Path, Path] = {}
        """Where each was -> where it is."""
        places = find_places(layout.profiles, _entries(layout, blame, before))
        keep_aside(layout, paths_in(places))
        make_scratch(layout)
        layout.store.make(self._homes[0])
        try:
            for cache, below in ((entry[0], below) for entry, found in places.items() for below in found):
                self._move(layout.cache(cache), below)
            if blame.cache is CacheName.MOE_CONFIGS:
                for place in self._moved:
                    put_back_shipped(layout, place)
        except OSError:
            self.put_back()
            raise

    def _move(self, top: Path, below: str) -> None:
        place, caches = top / below, self._layout.caches
        name = f"{len(self._moved)}.{place.name[-100:]}"
        home = next((home for home in self._homes if home.is_relative_to(top)), self._homes[0])
        try:
            caches.rename(place, home / name)
        except OSError as error:
            if error.errno != errno.EXDEV or home != self._homes[0]:
                raise
            home = top / _WITHIN  # the cache is a mount of its own
            caches.remove(home)  # a dead run's
            caches.make(home)
            self._homes.append(home)
            caches.rename(place, home / name)
        self._moved[place] = home / name

    @property
    def moved(self) -> dict[str, Path]:
        """Below the profiles root -> where it is."""
        return {str(place.relative_to(self._layout.profiles)): target for place, target in self._moved.items()}

    def put_back(self) -> None:
        """All of it, in place of what came meanwhile. What cannot be moved is lost, as from any cache."""
        for place, target in self._moved.items():
            with contextlib.suppress(OSError):
                self._layout.caches.remove(place)
                self._layout.caches.rename(target, place)
        self._clear()

    def settle(self) -> tuple[str, ...]:
        """Leaves away what was named, and what was made again; whatever else there is goes back.

        Completions then list what was made again as it is now. Returns what is gone, below the profiles root.
        """
        gone = []
        for below, target in self.moved.items():
            place = self._layout.profiles / below
            if self._blame.paths or place.exists():
                gone.append(below)
            else:
                with contextlib.suppress(OSError):
                    self._layout.caches.rename(target, place)
        self._clear()
        _list_anew(self._layout, gone)
        return tuple(gone)

    def _clear(self) -> None:
        for home in self._homes:
            with contextlib.suppress(OSError):
                self._layout.caches.remove(home)


def _entries(layout: Layout, blame: Blame, before: float) -> list[Entry]:
    """List what is to be moved. The server did not die of what it wrote itself before."""
    grouped = group_entries(path for cache in blame.caches for path in scan_cache(layout.profiles, cache).files)
    named = set(group_entries(blame.paths))
    found = []
    for entry, paths in grouped.items():
        if blame.paths:
            suspect = entry in named
        else:
            suspect = not blame.kernel or _has(paths, blame.kernel)
            suspect = suspect and all((layout.profiles / path).lstat().st_mtime < before for path in paths)
        if suspect:
            found.append(entry)
    return found


def _has(paths: Iterable[str], kernel: str) -> bool:
    return any(path.rpartition("/")[2].partition(".")[0] in (kernel, f"__grp__{kernel}") for path in paths)


def _list_anew(layout: Layout, gone: Sequence[str]) -> None:
    """Has the completions that list files of these entries list what is there in their place.

    An entry that is not there again stays listed, so that its absence is seen.
    """
    again = [entry for entry in gone if (layout.profiles / entry).exists()]
    for completion in chain.from_iterable(read_completions(layout, stage)[0] for stage in StageName):
        listed = [path for path in completion.artifacts if any(_is_in(path, entry) for entry in again)]
        others = {path: facts for path, facts in completion.artifacts.items() if path not in listed}
        artifacts = dict(sorted({**others, **artifacts_of(layout.profiles, listed)}.items()))
        if artifacts != completion.artifacts:
            write_completion(layout, completion.model_copy(update={"artifacts": artifacts}))


def _is_in(path: str, entry: str) -> bool:
    return path == entry or path.startswith(f"{entry}/")
