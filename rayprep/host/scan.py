"""Looks through a cache folder: what artifacts are there, how large, how new. Never follows a link."""

import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rayprep.model.base import utc_from_timestamp
from rayprep.model.caches import CACHES, CacheFacts, CacheName
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
    file_count: int = 0
    newest: list[tuple[float, str, int]] = field(default_factory=list)
    """(mtime, path below the cache's folder, bytes), newest first."""
    links: int = 0
    foreign: int = 0
    """Files of another owner."""
    unnameable: int = 0
    """Files whose name is not UTF-8; no library of ours makes such names, so they are no artifacts."""
    special: int = 0
    """Pipes, sockets and devices: nothing that a library caches."""
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
        if self.special:
            found.append(f"{self.special} pipes, sockets or devices, left out")
        if self.foreign:
            found.append(f"{self.foreign} files of another owner")
        if self.unnameable:
            found.append(f"{self.unnameable} files whose names are not UTF-8, left out")
        found += [f"{printable(path)} cannot be read" for path in self.unreadable[:3]]
        return tuple(found)


def scan_cache(root: Path, cache: CacheName, *, list_files: bool = True) -> CacheScan:
    """Walks `<root>/<cache>`. A folder that is not there, or cannot be read, is told apart in the answer.

    Args:
        list_files: fill `files`; without, a scan of many files is a little faster and much smaller.
    """
    top = root / cache.value
    try:
        mode = top.lstat().st_mode
    except FileNotFoundError:
        return CacheScan(cache, exists=False)
    except OSError as error:
        return CacheScan(cache, exists=False, obstacle=f"{top} cannot be read: {error.strerror}")
    if stat.S_ISLNK(mode):
        target = printable(str(top.readlink()))
        return CacheScan(cache, exists=True, obstacle=f"{top} is a link to {target}, which is not followed")
    if not stat.S_ISDIR(mode):
        return CacheScan(cache, exists=True, obstacle=f"{top} is not a folder")
    return _walk(str(top), cache, list_files)


def _walk(top: str, cache: CacheName, list_files: bool) -> CacheScan:
    found = CacheScan(cache, exists=True)
    files, newest, mine, oldest_kept = found.files, found.newest, os.getuid(), float("-inf")
    prefix, size_bytes, file_count = f"{cache.value}/", 0, 0
    for path, status in _regular_files(top, CACHES[cache], found):
        size = status.st_size
        if list_files:
            files[prefix + path] = size
        size_bytes += size
        file_count += 1
        if status.st_uid != mine:
            found.foreign += 1
        if status.st_mtime > oldest_kept:
            heapq.heappush(newest, (status.st_mtime, path, size))
            if len(newest) > NEWEST:
                heapq.heappop(newest)
                oldest_kept = newest[0][0]
    newest.sort(reverse=True)
    found.size_bytes, found.file_count = size_bytes, file_count
    return found


def _regular_files(top: str, facts: CacheFacts, found: CacheScan) -> Iterator[tuple[str, os.stat_result]]:
    """Every artifact below `top`, by its path there. Whatever else lies there is counted in `found`."""
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            # Through the folder's descriptor each stat looks one name up, not the whole path again.
            descriptor = os.open(f"{top}/{below}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # a builder beside us renamed it
        except OSError:
            found.unreadable.append(f"{top}/{below}".rstrip("/"))
            continue
        try:
            with os.scandir(descriptor) as entries:
                yield from _artifacts(entries, top, below, facts, found, pending)
        finally:
            os.close(descriptor)


def _artifacts(
    entries: Iterator[os.DirEntry[str]], top: str, below: str, facts: CacheFacts, found: CacheScan, pending: list[str]
) -> Iterator[tuple[str, os.stat_result]]:
    # One flat loop on purpose: a cache holds 100,000 files, and a call for each of them doubles the time.
    companions, volatile_names, volatile_dirs = facts.companion_names, facts.volatile_suffixes, facts.volatile_dirs
    is_regular = stat.S_ISREG
    for entry in entries:
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            if name not in volatile_dirs:
                pending.append(f"{below}{name}/")
            continue
        if name.endswith(volatile_names) or name in companions:
            continue
        path = below + name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # a builder beside us renamed it
        except OSError:
            found.unreadable.append(f"{top}/{path}")
            continue
        if is_regular(status.st_mode):
            if path.isascii() or _is_utf8(path):
                yield path, status
            else:
                found.unnameable += 1
        elif stat.S_ISLNK(status.st_mode):
            found.links += 1
        else:
            found.special += 1


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
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    listed = list(paths)

    def digest(path: str) -> str | None:
        try:
            # O_NONBLOCK: what was a file when it was listed may be a pipe that nobody writes to.
            descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    # hashlib lets go of the interpreter lock, so threads do run side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(digest, listed))
    return {path: found for path, found in zip(listed, digests, strict=True) if found}
