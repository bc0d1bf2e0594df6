"""Looks through a cache folder: what artifacts are there, how large, how new. Never follows a link."""

import hashlib
import heapq
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rayprep.model.base import utc_from_timestamp
from rayprep.model.caches import CACHES, CacheName
from rayprep.model.snapshot import NewestFile

NEWEST = 5
"""How many of the newest files a scan names."""


@dataclass
class CacheScan:
    """One cache folder. Sizes, counts and times are of artifacts."""

    cache: CacheName
    exists: bool
    obstacle: str | None = None
    """Why the folder must not be used: it is a link, or no folder."""
    files: dict[str, int] = field(default_factory=dict)
    """Path below the profiles root -> bytes."""
    size_bytes: int = 0
    newest: list[tuple[float, str, int]] = field(default_factory=list)
    """(mtime, path below the cache's folder, bytes), newest first."""
    links: int = 0
    foreign: int = 0
    """Files of another owner."""
    unnameable: int = 0
    """Files whose name is not UTF-8; no library of ours makes such names, so they are no artifacts."""
    unreadable: list[str] = field(default_factory=list)

    @property
    def latest_mtime(self) -> float | None:
        return self.newest[0][0] if self.newest else None

    @property
    def newest_files(self) -> tuple[NewestFile, ...]:
        return tuple(
            NewestFile(path=path, size_bytes=size, mtime_iso=utc_from_timestamp(mtime))
            for mtime, path, size in self.newest
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        found = [self.obstacle] if self.obstacle else []
        if self.links:
            found.append(f"{self.links} links, none of them followed")
        if self.foreign:
            found.append(f"{self.foreign} files of another owner")
        if self.unnameable:
            found.append(f"{self.unnameable} files whose names are not UTF-8, left out")
        found += [f"{printable(path)} cannot be read" for path in self.unreadable[:3]]
        return tuple(found)


def scan_cache(root: Path, cache: CacheName) -> CacheScan:
    """Walks `<root>/<cache>`. A folder that is not there, or cannot be read, is told apart in the answer."""
    top = root / cache.value
    if top.is_symlink():
        return CacheScan(cache, exists=True, obstacle=f"{top} is a link to {top.readlink()}, which is not followed")
    if not top.is_dir():
        exists = os.path.lexists(top)
        return CacheScan(cache, exists=exists, obstacle=f"{top} is not a folder" if exists else None)
    return _walk(str(top), cache)


def _walk(top: str, cache: CacheName) -> CacheScan:
    # One flat loop on purpose: a cache holds 100,000 files, and a call for each of them doubles the time.
    found = CacheScan(cache, exists=True)
    facts = CACHES[cache]
    companions, volatile_names = facts.companion_names, facts.volatile_suffixes
    files, newest, mine, total = found.files, found.newest, os.getuid(), 0
    oldest_kept = float("-inf")
    pending = [(top, "")]
    while pending:
        folder, below = pending.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            found.unreadable.append(folder)
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    if name not in facts.volatile_dirs:
                        pending.append((entry.path, f"{below}{name}/"))
                    continue
                if entry.is_symlink():
                    found.links += 1
                    continue
                if name.endswith(volatile_names) or name in companions:
                    continue
                path = below + name
                if not path.isascii() and not _is_utf8(path):
                    found.unnameable += 1
                    continue
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a builder beside us renamed it
                size = stat.st_size
                files[f"{cache.value}/{path}"] = size
                total += size
                if stat.st_uid != mine:
                    found.foreign += 1
                if stat.st_mtime > oldest_kept:
                    heapq.heappush(newest, (stat.st_mtime, path, size))
                    if len(newest) > NEWEST:
                        heapq.heappop(newest)
                        oldest_kept = newest[0][0]
    found.size_bytes = total
    newest.sort(reverse=True)
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """A path for people and JSON: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def hash_files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path below `root` -> `sha256:...`. A file that cannot be read is left out."""
    listed = list(paths)

    def digest(path: str) -> str | None:
        try:
            descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    # hashlib lets go of the interpreter lock, so threads do run side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(digest, listed))
    return {path: found for path, found in zip(listed, digests, strict=True) if found}
