"""What lies under a root of what a package holds."""

import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rayprep.base.errors import HostUnfit
from rayprep.base.text import printable
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import CheckState, Completion, Key, check_completion
from rayprep.model.signature import Signature
from rayprep.model.stages import STAGES, StageName
from rayprep.store.completions import read_completions
from rayprep.store.markers import read_markers
from rayprep.store.package.manifest import PackageManifest
from rayprep.store.package.placement import Here
from rayprep.store.scan import files_of, hash_files, scan_cache


def look(layout: Layout, manifest: PackageManifest, now: Signature) -> Here:
    """What lies here already of what the package holds. Hashes all of it.

    Raises:
        HostUnfit: a cache is no plain folder, or the markers cannot be read.
    """
    scans = [scan_cache(layout.profiles, cache) for cache in _caches(manifest)]
    if obstacle := next((scan.obstacle for scan in scans if scan.obstacle), None):
        raise HostUnfit(obstacle, hint="move it away: nothing is unpacked through a link")
    there = files_of(scans)
    completions = [each for stage in StageName for each in read_completions(layout, stage)[0]]
    own = _same_key(completions, manifest)
    listed = {path for each in (*manifest.completions, *own) for path in each.artifacts}
    packed = {file.path for file in manifest.files}
    hashes = hash_files(layout.profiles, sorted(listed & there.keys()))
    markers = read_markers(layout)
    nothing = {(each.stage, each.key) for each in manifest.completions if each.outcome == "skipped"}
    return Here(
        signature=now,
        artifacts={path: (there[path], digest) for path, digest in hashes.items()},
        companions={path for path in packed - listed if _is_plain_file(layout.profiles / path)},
        completions=completions,
        valid={
            (each.stage, each.key)
            for each in own
            # "Nothing to build here" is no reason to leave out what a server elsewhere has used all the same.
            if (each.outcome == "built" or (each.stage, each.key) in nothing)
            and (each.identity.model_slug, each.stage) not in markers
            and _holds(each, now, there, hashes)
        },
    )


def read_back(layout: Layout, written: Sequence[Completion], now: Signature) -> None:
    """That what was unpacked is found, and found valid, by the reader that every other command uses.

    Raises:
        HostUnfit: names the first that is not. Those that are not are removed.
    """
    caches = {cache for each in written for cache in STAGES[each.stage].caches}
    there = files_of(scan_cache(layout.profiles, cache) for cache in caches)
    wrong = [(each, why) for each in _lasting(written) if (why := _differs(layout, each, now, there))]
    for each, _ in wrong:
        layout.store.unlink(layout.completion(each.stage, each.key), missing_ok=True)
    if wrong:
        each, why = wrong[0]
        raise HostUnfit(
            f"{each.stage}/{each.key} was unpacked, and is not valid here: {why}",
            hint="run `rayprep ensure`, which builds what is missing",
        )


def _lasting(written: Sequence[Completion]) -> list[Completion]:
    """Without the parts of what came whole: writing that has dropped them."""
    whole = {each.identity for each in written if not each.identity.part}
    return [each for each in written if each.identity.model_copy(update={"part": ""}) not in whole - {each.identity}]


def _differs(layout: Layout, each: Completion, now: Signature, there: Mapping[str, int]) -> str:
    """Empty where the completion that lies here is the one that was written."""
    good, bad = read_completions(layout, each.stage, each.identity.model_slug, each.identity.tp)
    found = next((other for other in good if other.key == each.key), None)
    if found is None:
        path = str(layout.completion(each.stage, each.key))
        return next((other.why for other in bad if other.path == printable(path)), "it is not there")
    if (found.outcome, found.units, found.artifacts) != (each.outcome, each.units, each.artifacts):
        return "it reads otherwise than it was written"
    check = check_completion(found, now, there)
    return "" if check.valid or check.state is CheckState.UNSUPPORTED else f"{check.state} {check.detail}".strip()


def _caches(manifest: PackageManifest) -> list[CacheName]:
    stages = {each.stage for each in manifest.completions}
    named = {CacheName(folder) for folder in {file.path.partition("/")[0] for file in manifest.files}}
    return sorted(named | {cache for stage in stages for cache in STAGES[stage].caches})


def _same_key(completions: Iterable[Completion], manifest: PackageManifest) -> list[Completion]:
    keys: set[Key] = {(each.stage, each.key) for each in manifest.completions}
    return [each for each in completions if (each.stage, each.key) in keys]


def _holds(each: Completion, now: Signature, files: Mapping[str, int], hashes: Mapping[str, str]) -> bool:
    wrong = [path for path, (_, digest) in each.artifacts.items() if hashes.get(path) != digest]
    return check_completion(each, now, files, wrong_hashes=wrong).valid


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
