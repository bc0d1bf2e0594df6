"""Looks through a cache folder: what artifacts are there, how large, how new. Never follows a link."""

import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from threading import Event

from rayprep.base.records import utc_from_timestamp
from rayprep.base.text import printable
from rayprep.model.caches import CACHES, CacheName
from rayprep.model.snapshot import NewestFile

NEWEST = 5
"""How many of the newest files a scan names."""
_HASHED_PART = 1 << 20
"""Bytes."""
_HASHED_AT_ONCE = 1000


@dataclass
class CacheScan:
    """One cache folder. Sizes, counts and times are of artifacts."""

    cache: CacheName
    exists: bool
    obstacle: str | None = None
    """Why the folder must not be used: it is a link, or no folder."""
    files: dict[str, int] = field(default_factory=dict)
    """Path below the profiles root -> bytes."""
    changed: dict[str, float] = field(default_factory=dict)
    """Those of them that were changed after a given moment -> when, in seconds since the epoch."""
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


def scan_cache(root: Path, cache: CacheName, *, list_files: bool = True, since: float = inf) -> CacheScan:
    """Walks `<root>/<cache>`. A folder that is not there, or cannot be read, is told apart in the answer.

    Args:
        list_files: fill `files`; without, a scan of many files is a little faster and much smaller.
        since: the moment from which on `changed` names them, in seconds since the epoch.
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
    return _walk(str(top), cache, list_files, since)


def _walk(top: str, cache: CacheName, list_files: bool, since: float) -> CacheScan:
    found = CacheScan(cache, exists=True)
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
                pending += _count(entries, top, below, found, list_files, since)
        finally:
            os.close(descriptor)
    found.newest.sort(reverse=True)
    return found


def _count(  # noqa: PLR0912 - one flat loop on purpose: a call for each of 100,000 files would double the time
    entries: Iterator[os.DirEntry[str]], top: str, below: str, found: CacheScan, list_files: bool, since: float
) -> list[str]:
    """Adds one folder's artifacts to `found`; returns the folders in it, by their path below the cache's."""
    facts = CACHES[found.cache]
    passed_over, volatile_suffixes = facts.companion_names | facts.volatile_names, facts.volatile_suffixes
    volatile_dirs, volatile_dir_prefixes = facts.volatile_dirs, facts.volatile_dir_prefixes
    files, newest, mine, is_regular = found.files, found.newest, os.getuid(), stat.S_ISREG
    prefix, plain = f"{found.cache.value}/{below}", below.isascii()
    oldest_kept = newest[0][0] if len(newest) == NEWEST else float("-inf")
    size_bytes = file_count = 0
    folders = []
    for entry in entries:
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            if name not in volatile_dirs and not name.startswith(volatile_dir_prefixes):
                folders.append(f"{below}{name}/")
            continue
        if name.endswith(volatile_suffixes) or name in passed_over:
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # a builder beside us renamed it
        except OSError:
            found.unreadable.append(f"{top}/{below}{name}")
            continue
        if not is_regular(status.st_mode):
            if stat.S_ISLNK(status.st_mode):
                found.links += 1
            else:
                found.special += 1
            continue
        if not ((plain and name.isascii()) or _is_utf8(below + name)):
            found.unnameable += 1
            continue
        size = status.st_size
        size_bytes += size
        file_count += 1
        if list_files:
            files[prefix + name] = size
            if status.st_mtime > since:
                found.changed[prefix + name] = status.st_mtime
        if status.st_uid != mine:
            found.foreign += 1
        if status.st_mtime > oldest_kept:
            heapq.heappush(newest, (status.st_mtime, below + name, size))
            if len(newest) > NEWEST:
                heapq.heappop(newest)
                oldest_kept = newest[0][0]
    found.size_bytes += size_bytes
    found.file_count += file_count
    return folders


def files_of(scans: Iterable[CacheScan]) -> dict[str, int]:
    """All artifacts of several scans, path below the profiles root -> bytes."""
    return {path: size for scan in scans for path, size in scan.files.items()}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def artifacts_of(root: Path, paths: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return files as a completion lists them: path below `root` -> (bytes, `sha256:...`). As `hash_files`."""
    return {path: ((root / path).lstat().st_size, digest) for path, digest in hash_files(root, paths).items()}


def hash_files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path below `root` -> `sha256:...`. A file that cannot be read is left out."""
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    listed, stopped = list(paths), Event()

    def digest(path: str) -> str | None:
        try:
            # O_NONBLOCK: what was a file when it was listed may be a pipe that nobody writes to.
            descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                content = hashlib.sha256()
                while not stopped.is_set() and (part := file.read(_HASHED_PART)):
                    content.update(part)
                return None if stopped.is_set() else "sha256:" + content.hexdigest()
        except OSError:
            return None

    # hashlib lets go of the interpreter lock, so threads do run side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # Some at a time: the pool keeps more than a kilobyte for each that it was given.
        starts = range(0, len(listed), _HASHED_AT_ONCE)
        try:
            digests = [found for at in starts for found in pool.map(digest, listed[at : at + _HASHED_AT_ONCE])]
        except BaseException:
            stopped.set()  # an interrupt does not wait for a file that is large, or has no end
            raise
    return {path: found for path, found in zip(listed, digests, strict=True) if found}
