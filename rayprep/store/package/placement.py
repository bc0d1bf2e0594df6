"""What a host does with a package: which of its files come in, and which completions are written or go."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rayprep.base.errors import HostUnfit
from rayprep.model.caches import CacheName, Entry
from rayprep.model.completion import Completion, Key
from rayprep.model.signature import Signature, differences
from rayprep.store.package.manifest import Listed, PackageManifest, PackedFile, entry_at, listed_by

_CACHES = frozenset(CacheName)


@dataclass(frozen=True)
class Here:
    """What lies under the receiver's root, as far as it concerns a package."""

    signature: Signature
    artifacts: Mapping[str, Listed]
    """Of the package's artifacts, those whose paths hold a plain file, as it is now."""
    companions: Collection[str]
    """Of its companions, those that are there."""
    completions: Sequence[Completion]
    """All of this root."""
    valid: Collection[Key]
    """Of the package's keys, those that hold here."""


@dataclass(frozen=True)
class Placement:
    """What a receiver does with a package. Paths are below the profiles root."""

    completions: tuple[Completion, ...]
    """To be written."""
    kept: tuple[Completion, ...]
    dropped: tuple[Completion, ...]
    whole: Mapping[Entry, frozenset[str]]
    """Entries that come in as they are packed, in place of what is there."""
    single: Mapping[Entry, frozenset[str]]
    """Files that come into entries which other completions list too, so that nothing of theirs goes."""

    @property
    def needed(self) -> frozenset[str]:
        return frozenset().union(*self.whole.values(), *self.single.values())


def place(manifest: PackageManifest, here: Here) -> Placement:
    """Decides. Call it after `check_manifest` and `check_binding`.

    A file that another completion lists with the content that it has stays: two builds of one entry differ in
    their bytes and not in their use, and the received completion then lists the one that is there.

    Raises:
        HostUnfit: such a file belongs to another kind of host.
    """
    arriving = tuple(each for each in manifest.completions if (each.stage, each.key) not in here.valid)
    keys = {(each.stage, each.key) for each in arriving}
    others = [each for each in here.completions if (each.stage, each.key) not in keys]
    wanted = listed_by(arriving)
    stays, dropped = _contested(wanted, others, here)
    standing = [each for each in others if each not in dropped]
    shared = {entry_at(path) for each in standing for path in each.artifacts if path.partition("/")[0] in _CACHES}
    whole: dict[Entry, frozenset[str]] = {}
    single: dict[Entry, frozenset[str]] = {}
    for entry, files in _by_entry(manifest.files, wanted).items():
        missing = {file.path for file in files if file.path not in stays and not _is_there(file, wanted, here)}
        if missing and entry in shared:
            single[entry] = frozenset(missing)
        elif missing:
            whole[entry] = frozenset(file.path for file in files)
    return Placement(
        completions=tuple(_listing(each, stays) for each in arriving),
        kept=tuple(each for each in manifest.completions if each not in arriving),
        dropped=tuple(dropped),
        whole=whole,
        single=single,
    )


def _contested(
    wanted: Mapping[str, Listed], others: Iterable[Completion], here: Here
) -> tuple[dict[str, Listed], list[Completion]]:
    """Files that stay although the package has others, and completions whose files are damaged already."""
    stays: dict[str, Listed] = {}
    dropped = []
    for other in others:
        rivals = [path for path in other.artifacts.keys() & wanted.keys() if other.artifacts[path] != wanted[path]]
        right = [path for path in rivals if here.artifacts.get(path) == other.artifacts[path]]
        if len(right) < len(rivals):
            dropped.append(other)
        elif right and (differing := differences(other.stage, other.signature, here.signature)):
            raise HostUnfit(
                f"{min(right)} is in use by completion {other.key} of another kind of host: {differing[0]}",
                hint="`rayprep reset` removes it",
            )
        else:
            stays |= {path: other.artifacts[path] for path in right}
    return stays, dropped


def _by_entry(files: Iterable[PackedFile], wanted: Mapping[str, Listed]) -> dict[Entry, list[PackedFile]]:
    found: dict[Entry, list[PackedFile]] = defaultdict(list)
    for file in files:
        found[entry_at(file.path)].append(file)
    return {entry: inside for entry, inside in found.items() if any(file.path in wanted for file in inside)}


def _is_there(file: PackedFile, wanted: Mapping[str, Listed], here: Here) -> bool:
    if file.path in wanted:
        return here.artifacts.get(file.path) == file.listed
    return file.path in here.companions


def _listing(completion: Completion, stays: Mapping[str, Listed]) -> Completion:
    """Without the proof and the log, which are another host's."""
    artifacts = {path: stays.get(path, listed) for path, listed in completion.artifacts.items()}
    return completion.model_copy(update={"artifacts": artifacts, "verification": None, "verify_log": None})
