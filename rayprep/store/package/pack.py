"""Packs the caches of finished stages into one archive. Takes no lock: each file is proved while it is read."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rayprep import __version__
from rayprep.base.errors import BadRequest, HostUnfit, RayprepError
from rayprep.base.records import encodable
from rayprep.base.text import printable
from rayprep.host.layout import Layout, os_error_type
from rayprep.model.caches import CACHES, CacheName, Entry, FileKind, classify
from rayprep.model.completion import Completion
from rayprep.model.signature import Signature, differences
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from rayprep.store.entries import find_places
from rayprep.store.markers import read_markers
from rayprep.store.package.manifest import (
    MANIFEST_NAME,
    PackageManifest,
    PackageReport,
    PackedFile,
    check_manifest,
    entry_at,
    folders_above,
    listed_by,
    manifest_text,
)
from rayprep.store.package.tar_stream import CHUNK, END, header, member_size, padding
from rayprep.store.scan import hash_files

_KEY = re.compile(r".+-tp\d+-[0-9a-f]{16}")


def choose(layout: Layout, names: Sequence[str], tp: int, now: Callable[[], Signature]) -> list[Completion]:
    """The completions that `names` mean: each a key, or a model's slug.

    Args:
        tp: with a slug, the layout that is meant.
        now: this host's signature; a slug means only what fits it. Asked for only where needed.

    Raises:
        BadRequest: nothing is under a name, or nothing that fits this host, or nothing of it lists a file.
        HostUnfit: completions cannot be read.
    """
    layout.refuse_strange_store()
    for stage in StageName:
        _refuse_unreadable(layout.completions(stage))
    found: dict[tuple[StageName, str], Completion] = {}
    for name in names:
        chosen = _of_key(layout, name) or _of_slug(layout, name, tp, now)
        found |= {(each.stage, each.key): each for each in chosen}
    if not any(each.artifacts for each in found.values()):
        raise BadRequest(
            f"there is nothing to pack: no completion of {', '.join(names)} in {layout.profiles} lists a file",
            hint="run `rayprep ensure`, which builds what is missing, then pack again",
        )
    order = list(StageName)
    return sorted(found.values(), key=lambda each: (order.index(each.stage), each.key))


def _refuse_unreadable(folder: Path) -> None:
    """A folder that cannot be listed would look like an empty one."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise _unreadable(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder)))


def _of_key(layout: Layout, key: str) -> list[Completion]:
    if not _KEY.fullmatch(key):
        return []
    found = [each for stage in StageName for each in read_completions(layout, stage)[0]]
    return [each for each in found if each.key == key and each.outcome != "unsupported"]


def _of_slug(layout: Layout, slug: str, tp: int, now: Callable[[], Signature]) -> list[Completion]:
    read = [read_completions(layout, stage, slug, tp) for stage in StageName]
    found = [each for good, _ in read for each in good if each.outcome != "unsupported"]  # which has nothing to send
    if bad := next((each for _, several in read for each in several), None):
        raise HostUnfit(f"completion {bad.path} cannot be read: {bad.why}", hint="run `rayprep ensure`")
    if not found:
        raise BadRequest(
            f"{layout.profiles} has no completion {slug}, and none of a model of that name at TP {tp}",
            hint="`rayprep explain` prints the keys; `rayprep ensure` builds what is missing",
        )
    here = now()
    fitting = [each for each in found if not differences(each.stage, each.signature, here)]
    if not fitting:
        first = differences(found[0].stage, found[0].signature, here)[0]
        raise BadRequest(
            f"nothing of {slug} at TP {tp} was built for this kind of host: {first}",
            hint="name the keys that you mean",
        )
    return fitting


class Sink(Protocol):
    """Where an archive is written to."""

    def write(self, data: bytes, /) -> object: ...


def pack(layout: Layout, completions: Sequence[Completion], out: Sink) -> PackageReport:
    """Writes the archive to `out`.

    Raises:
        HostUnfit: a file is not what its completion lists, or a stage is being built; `out` then holds a part of an
            archive, which no receiver takes.
    """
    manifest = make_manifest(layout, completions)
    for block in blocks(layout, manifest):
        out.write(block)
    return PackageReport(
        action="pack",
        profiles_root=str(layout.profiles),
        completions=tuple(f"{each.stage}/{each.key}" for each in manifest.completions),
        entries=len({entry_at(file.path) for file in manifest.files}),
        files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files),
    )


def blocks(layout: Layout, manifest: PackageManifest, start: int = 0) -> Iterator[bytes]:
    """The archive, a piece at a time, of whatever size it comes. Raises HostUnfit, as `pack` does.

    Args:
        start: so many bytes of it are left out. Files that lie before are not read, so that going on costs little.
    """
    text = manifest_text(manifest)
    first = header(MANIFEST_NAME, len(text)) + text + padding(len(text))
    for place in range(start, len(first), CHUNK):
        yield first[place : place + CHUNK]
    left = max(0, start - len(first))
    for file in manifest.files:
        if not left:
            yield from _blocks_of(layout, file)
        elif left >= (size := member_size(file)):
            left -= size
        else:
            yield from _after(left, _blocks_of(layout, file))
            left = 0
    # A build that began meanwhile may have rewritten a companion after it was hashed and read.
    _refuse_marked(layout, manifest.completions)
    yield END[left:]


def _after(start: int, blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield block[start:]
        start = max(0, start - len(block))


def _refuse_marked(layout: Layout, completions: Iterable[Completion]) -> None:
    markers = read_markers(layout)
    for each in completions:
        if (each.identity.model_slug, each.stage) in markers:
            marker = layout.marker(each.identity.model_slug, each.stage)
            raise HostUnfit(
                f"{each.stage} of {each.identity.model_slug} is being built, or its build was aborted: {marker} stands",
                hint="run `rayprep ensure`, then pack again",
            )


def make_manifest(layout: Layout, completions: Sequence[Completion]) -> PackageManifest:
    """Lists what there is to pack; hashes the companions, which no completion lists.

    Raises:
        HostUnfit: the first listed file that is not there as a plain file of its size, or a stage that is being built.
    """
    _refuse_marked(layout, completions)
    listed = listed_by(completions)
    try:
        found = list(_companions(layout, {entry_at(path) for path in listed}))
    except OSError as error:
        raise _unreadable(error) from None
    hashes = hash_files(layout.profiles, found)
    companions = {path: ((layout.profiles / path).lstat().st_size, hashes.get(path, "")) for path in found}
    listed |= companions
    hidden = _behind_links(layout, folders_above(listed))
    manifest = PackageManifest(
        rayprep_version=__version__,
        completions=tuple(completions),
        companions=companions,
        mtimes={path: _mtime_ns(layout, path, listed[path][0], hidden) for path in sorted(listed)},
    )
    check_manifest(manifest)
    return manifest


def _behind_links(layout: Layout, folders: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for folder in sorted(folders):  # the upper ones first
        if folder.rpartition("/")[0] in found or (layout.profiles / folder).is_symlink():
            found.add(folder)
    return found


def _mtime_ns(layout: Layout, path: str, size: int, hidden: Collection[str]) -> int:
    try:
        status = os.lstat(f"{layout.profiles}/{path}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from None
    except OSError as error:
        raise _unreadable(error) from None
    if path.rpartition("/")[0] in hidden or not stat.S_ISREG(status.st_mode):
        raise _wrong(path, "is no plain file of its cache")
    if status.st_size != size:
        raise _wrong(path, f"has {status.st_size} bytes, its completion lists {size}")
    return status.st_mtime_ns


def _companions(layout: Layout, entries: Iterable[Entry]) -> Iterator[str]:
    """The plain companion files of the entries, by their paths below the profiles root."""
    with_companions = [entry for entry in entries if CACHES[entry[0]].companion_names]
    for (cache, _), places in find_places(layout.profiles, with_companions).items():
        top = layout.cache(cache)
        plain = [top / place for place in places if not (top / place).is_symlink()]
        for folder, _, names in (walked for place in plain for walked in os.walk(place)):
            for name in names:
                path = Path(folder, name)
                below = path.relative_to(top)
                if _is_companion(cache, below.parts) and stat.S_ISREG(path.lstat().st_mode):
                    yield f"{cache}/{below}"


def _is_companion(cache: CacheName, parts: tuple[str, ...]) -> bool:
    utf8 = all(encodable(part) == part for part in parts)
    return utf8 and classify(cache, parts) is FileKind.COMPANION


def _blocks_of(layout: Layout, file: PackedFile) -> Iterator[bytes]:
    try:
        # O_NONBLOCK: what was a file when it was listed may be a pipe that nobody writes to.
        descriptor = os.open(f"{layout.profiles}/{file.path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(error) from None
    try:
        # One block of a small file: a step of a generator costs as much as reading it.
        block = header(file.path, file.size, file.mtime_ns)
        chunk = os.read(descriptor, min(file.size, CHUNK))
        digest, left = hashlib.sha256(chunk), file.size - len(chunk)
        while left and chunk:
            yield block + chunk
            block, chunk = b"", os.read(descriptor, min(left, CHUNK))
            digest.update(chunk)
            left -= len(chunk)
    except OSError as error:
        raise _unreadable(error, f"{layout.profiles}/{file.path}") from None
    finally:
        os.close(descriptor)
    if left or f"sha256:{digest.hexdigest()}" != file.sha256:
        raise _wrong(file.path, "is not what its completion lists", "--deep")
    yield block + chunk + padding(file.size)


def _wrong(path: str, what: str, flag: str = "") -> RayprepError:
    """`flag` is what `ensure` has to be given to find it as well."""
    ensure = f"rayprep ensure {flag}".strip()
    return HostUnfit(f"{printable(path)} {what}", hint=f"run `{ensure}`, which builds it again, then pack again")


def _unreadable(error: OSError, path: str = "") -> RayprepError:
    return HostUnfit(
        f"{printable(path or str(error.filename))} cannot be read: {error.strerror}",
        hint="chmod or chown it, then pack again; if it is damaged, `rayprep ensure` builds it again",
        error_type=os_error_type(error),
    )
