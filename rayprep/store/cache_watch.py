"""What a server does to the caches: taken before it starts, asked when it has ended."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName, entry_of
from rayprep.store.access_times import ReadTracker
from rayprep.store.scan import files_of, scan_cache


@dataclass(frozen=True)
class CacheUse:
    """All paths are below the profiles root."""

    files: dict[str, int]
    """Every artifact that is there now -> bytes."""
    new: tuple[str, ...]
    """Those that were not there before, or have another size."""
    rewritten: tuple[str, ...]
    """Those of the same size that were written again."""
    read: frozenset[str]
    """Those that were read or made, each with the rest of its entry: a library may only look whether that is there."""
    tells_reads: bool
    """False where the file system does not keep access times; `read` is then everything."""

    @property
    def made(self) -> tuple[str, ...]:
        """The entries of which something is new, `<cache>/<entry>`, sorted."""
        return tuple(sorted({entry_name(path) for path in self.new}))

    def within(self, caches: Collection[CacheName]) -> frozenset[str]:
        """What was read in these caches; only what is new where reads cannot be told."""
        names = {cache.value for cache in caches}
        return frozenset(
            path for path in (self.read if self.tells_reads else self.new) if path.partition("/")[0] in names
        )


class CacheWatch:
    """For the holder of the store's lock; what others read meanwhile counts as read, too."""

    def __init__(self, layout: Layout, caches: Iterable[CacheName]) -> None:
        self._layout, self._caches = layout, tuple(caches)
        self._before = self._artifacts()
        self._written = self._times(self._before)
        self._tracker = ReadTracker(layout.profiles, self._before)

    def look(self) -> CacheUse:
        files = self._artifacts()
        new = tuple(path for path in sorted(files) if self._before.get(path) != files[path])
        same = files.keys() - set(new)
        times = self._times(same)
        touched = {entry_name(path) for path in self._tracker.read_of(files)} | {entry_name(path) for path in new}
        return CacheUse(
            files=files,
            new=new,
            rewritten=tuple(sorted(path for path in same if times.get(path) != self._written.get(path))),
            read=frozenset(path for path in files if entry_name(path) in touched),
            tells_reads=self._tracker.works,
        )

    def _artifacts(self) -> dict[str, int]:
        return files_of(scan_cache(self._layout.profiles, cache) for cache in self._caches)

    def _times(self, paths: Iterable[str]) -> dict[str, int]:
        found = {}
        for path in paths:
            try:
                found[path] = (self._layout.profiles / path).lstat().st_mtime_ns
            except OSError:
                continue  # gone meanwhile
        return found


def entry_name(path: str) -> str:
    """The whole entry that a file below the profiles root belongs to, `<cache>/<entry>`."""
    cache, _, below = path.partition("/")
    return f"{cache}/{entry_of(CacheName(cache), below)}"
