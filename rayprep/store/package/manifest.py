"""A package: the caches of finished stages as one tar archive, and what a host does with one.

The archive's first member is the manifest, `rayprep-package.json`, which carries its own checksum; then come exactly
the files that it lists, in its order, under their paths below the profiles root. Only plain files: GNU tar's format
(POSIX 1003.1-1990 headers, and a long-name member before names over 100 bytes), so every tar can list it.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError
from pydantic_core import from_json

from rayprep.base.bounded_json import OutOfBounds, check_sizes, check_values
from rayprep.base.errors import BadRequest, HostUnfit
from rayprep.base.records import Record, first_problem
from rayprep.base.sealed import Sealed, Unsealed, open_seal, seal
from rayprep.model.caches import CacheName, Entry, FileKind, classify, entry_of
from rayprep.model.completion import READ_FORMATS, Completion, Key, cache_key
from rayprep.model.signature import Signature, differences
from rayprep.model.slug import model_slug

MANIFEST_NAME = "rayprep-package.json"
PACKAGE_FORMAT = "2"
UNSEALED_FORMAT = "1"
"""As before, without a checksum."""
LARGEST_MANIFEST = 40 << 20
"""Bytes. 100,000 files take 33 million, and make a receiver of 250 MiB."""
MOST_VALUES = 450_000
"""In a manifest. A file takes four, and three more for each further completion that lists it."""
MOST_KEYS = 260_000
"""In all objects of a manifest: a file is listed, and has its time."""
MOST_OBJECTS = 20_000
"""A completion has four, and one for each size that a MoE kernel was tuned for."""
MOST_COMPLETIONS = 500
"""Fewer than the files that a process may have open, as it holds a lock for each slug."""
_MOST_ERRORS = 100
_MOST_CONFIGS = 1000
_LONGEST_PATH = 1024
"""Bytes."""
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE | re.ASCII)
_CACHES = {cache.value: cache for cache in CacheName}

Listed = tuple[int, str]
"""Bytes and `sha256:...`, as a completion lists a file."""


MtimeNs = Annotated[int, Field(ge=-(2**63) * 10**9, lt=2**63 * 10**9)]
"""Since the epoch."""


class PackedFile(NamedTuple):
    """One file of the archive. `path` is below the profiles root."""

    path: str
    size: int
    sha256: str
    mtime_ns: int

    @property
    def listed(self) -> Listed:
        return (self.size, self.sha256)


class PackageManifest(Sealed):
    """What is in the archive: the completions, and the files that they list with the companions of their entries."""

    schema_version: str = PACKAGE_FORMAT
    rayprep_version: str
    completions: tuple[Completion, ...] = Field(max_length=MOST_COMPLETIONS)
    companions: dict[str, Listed]
    """Path below the profiles root -> (bytes, `sha256:...`), as a completion has it for all other files."""
    mtimes: dict[str, MtimeNs]
    """Of all files, by their paths, sorted. Kept, since ninja builds again what is older than its sources."""

    @cached_property
    def files(self) -> tuple[PackedFile, ...]:
        """In the archive's order. Call it after `check_manifest`."""
        listed = listed_by(self.completions) | self.companions
        return tuple(PackedFile(path, *listed[path], mtime_ns) for path, mtime_ns in self.mtimes.items())


class PackageReport(Record):
    """What `pack` or `unpack` did, or with `dry_run` what it would do. Completions are named `<stage>/<key>`."""

    schema_version: str = "1"
    action: Literal["pack", "unpack"]
    dry_run: bool = False
    profiles_root: str
    completions: tuple[str, ...]
    """Packed, or written here."""
    kept: tuple[str, ...] = ()
    """Of the package's, those that were valid here already."""
    dropped: tuple[str, ...] = ()
    """Other completions that listed files that were damaged, and are replaced now."""
    entries: int
    """Packed, or moved in."""
    files: int
    bytes: int
    sha256: str | None = None
    """Of the archive as it lies there, `sha256:...`: what `unpack` was given, or what `pack` has written."""


def parse_digest(text: str) -> str:
    """`sha256:...` of 64 hex digits, with or without that prefix, in any case. Raises BadRequest."""
    if not (found := _DIGEST.fullmatch(text)):
        raise BadRequest(f"{text[:100]!r} is no SHA-256 digest", hint="give 64 hex digits, as sha256sum prints them")
    return f"sha256:{found[1].lower()}"


def manifest_text(manifest: PackageManifest) -> bytes:
    """The archive's first member. Raises BadRequest where it is larger than any receiver takes."""
    text = seal(manifest.model_dump_json()).encode()
    try:
        check_sizes(text, LARGEST_MANIFEST, MOST_VALUES, MOST_OBJECTS)
    except ValueError as error:
        raise BadRequest(f"the package has too many files: its manifest: {error}", hint="pack fewer at once") from None
    return text


def parse_manifest(text: bytes) -> PackageManifest:
    """Reads the archive's first member. Raises BadRequest where it is none, or of another format."""
    try:
        check_sizes(text, LARGEST_MANIFEST, MOST_VALUES, MOST_OBJECTS)
        check_values(text, MOST_KEYS)
        content, sealed = _opened(text)
        del text  # tens of megabytes, and the parser takes as much again
        tree = from_json(content)
        found = _format_of(tree)
        if found == UNSEALED_FORMAT and not sealed:
            return _read(tree, "forbid")
        if found == PACKAGE_FORMAT and sealed:
            return _read(tree, "ignore")
        if found in (UNSEALED_FORMAT, PACKAGE_FORMAT):
            raise OutOfBounds(f"format {found} with{'' if sealed else 'out'} a checksum")
    except ValueError as error:
        raise _refused(f"the manifest cannot be read: {_problem(error)}") from None
    raise BadRequest(
        f"the package has format {found[:20]}, this rayprep reads {UNSEALED_FORMAT} and {PACKAGE_FORMAT}",
        hint="pack and unpack with the same version of rayprep",
    )


def _opened(text: bytes) -> tuple[bytes, bool]:
    """The JSON object, and whether it was sealed. Raises ValueError where its seal is broken."""
    try:
        return open_seal(text), True
    except Unsealed:
        return text, False


def _format_of(tree: object) -> str:
    found = tree.get("schema_version") if isinstance(tree, dict) else None
    if not isinstance(found, str):
        raise OutOfBounds("it is no object with a schema_version")
    return found


def _read(tree: object, extra: Literal["ignore", "forbid"]) -> PackageManifest:
    # From objects, since each error of a model that reads JSON keeps a copy of all that it was found in.
    manifest = PackageManifest.model_validate(tree, extra=extra)
    # One string for each path, of which the parser has made two: a tenth of what it takes.
    names = {path: path for each in manifest.completions for path in each.artifacts}
    mtimes = {names.get(path, path): mtime_ns for path, mtime_ns in manifest.mtimes.items()}
    return manifest.model_copy(update={"mtimes": mtimes})


def _problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    if error.error_count() > _MOST_ERRORS:  # to list them takes a kilobyte each
        return f"{error.error_count()} fields of it are wrong or missing"
    return first_problem(error)


def check_manifest(manifest: PackageManifest) -> None:
    """That the files are what the completions list, plus companions of their entries, and that all paths are plain.

    Raises:
        BadRequest: names the first thing that is not so.
    """
    if not manifest.completions:
        raise _refused("it holds no completion")
    seen: set[Key] = set()
    for each in manifest.completions:
        _check_completion(each)
        if (each.stage, each.key) in seen:
            raise _refused(f"it holds completion {each.key} twice")
        seen.add((each.stage, each.key))
    listed = listed_by(manifest.completions)
    entries = {entry_at(path) for path in listed}
    for path in manifest.companions:
        _check_companion(path, listed, entries)
    paths, sizes = manifest.mtimes.keys(), listed | manifest.companions
    if differing := sorted(paths ^ sizes.keys()):
        raise _refused(f"{differing[0]} is packed or listed, and not both")
    if large := next((path for path, (size, _) in sizes.items() if not 0 <= size < 2**63), None):
        raise _refused(f"{large} has {sizes[large][0]} bytes")
    if behind := next((path for last, path in pairwise(paths) if path <= last), None):
        raise _refused(f"{behind} is not in order")
    if long := next((path for path in paths if len(path.encode()) > _LONGEST_PATH), None):
        raise _refused(f"{long[:100]}... is longer than {_LONGEST_PATH} bytes")
    if both := next((folder for path in paths for folder in _above(path) if folder in paths), None):
        raise _refused(f"{both} is a file and a folder at once")


def _check_completion(each: Completion) -> None:
    if each.schema_version not in READ_FORMATS:
        reads = " and ".join(READ_FORMATS)
        raise _refused(f"completion {each.key} has format {each.schema_version}, this rayprep reads {reads}")
    if len(each.moe_configs) > _MOST_CONFIGS:
        raise _refused(f"completion {each.key} names {len(each.moe_configs)} MoE configs")
    slug = each.identity.model_slug
    # The slug and the key become names of files.
    if model_slug(slug) != slug or each.key != cache_key(each.stage, each.identity, each.signature):
        raise _refused(f"completion {each.key} is not under the key of what it is for")


def _check_companion(path: str, listed: Mapping[str, Listed], entries: Collection[Entry]) -> None:
    folder, *below = path.split("/")
    if "\0" in path or not {"", ".", ".."}.isdisjoint((folder, *below)):
        raise _refused(f"{path!r} is no plain path below the profiles root")
    if folder not in _CACHES or not below:
        raise _refused(f"{path} lies in no cache")
    if classify(_CACHES[folder], tuple(below)) is not FileKind.COMPANION or entry_at(path) not in entries:
        raise _refused(f"{path} is listed by no completion")
    if path in listed:
        raise _refused(f"{path} is listed by a completion, and a companion")


def folders_above(paths: Iterable[str]) -> set[str]:
    """All of them, by their own paths."""
    found: set[str] = set()
    for path in paths:
        for above in _above(path):
            if above in found:
                break
            found.add(above)
    return found


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in, the nearest first."""
    while path := path.rpartition("/")[0]:
        yield path


def listed_by(completions: Iterable[Completion]) -> dict[str, Listed]:
    """All that they list. Raises BadRequest where two list one file with another content, or a file in no cache."""
    listed: dict[str, Listed] = {}
    for each in completions:
        for path, content in each.artifacts.items():
            folder, _, below = path.partition("/")
            if folder not in _CACHES or not below or "\0" in path:
                raise _refused(f"{path!r} lies in no cache")
            if listed.setdefault(path, content) != content:
                raise BadRequest(
                    f"two completions list {path} with different content",
                    hint="run `rayprep ensure --deep` for both where they were built, then pack again",
                )
    return listed


def entry_at(path: str) -> Entry:
    """The entry of a path below the profiles root, which has to lie in a cache."""
    folder, _, below = path.partition("/")
    cache = _CACHES[folder]
    return cache, entry_of(cache, below)


def check_binding(manifest: PackageManifest, now: Signature) -> None:
    """That the artifacts work on a host with the signature `now`.

    Raises:
        HostUnfit: names the first field that binds a stage and differs, with both values.
    """
    for each in manifest.completions:
        for difference in differences(each.stage, each.signature, now):
            raise HostUnfit(
                f"the package is for another kind of host: {each.stage}: {difference}",
                hint=f"it binds since {difference.why}; run `rayprep ensure` here instead",
            )


def _refused(why: str) -> BadRequest:
    return BadRequest(f"the package is refused: {why}", hint="pack it again with `rayprep pack`")
