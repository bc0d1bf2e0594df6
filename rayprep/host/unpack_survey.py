"""What lies under a root of what a package holds."""

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from rayprep.host.completions import read_completions
from rayprep.host.layout import Layout
from rayprep.host.markers import read_markers
from rayprep.host.scan import files_of, hash_files, scan_cache
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion, check_completion
from rayprep.model.errors import HostUnfit
from rayprep.model.package import Key, PackageManifest
from rayprep.model.placement import Here
from rayprep.model.signature import Signature
from rayprep.model.stages import STAGES, StageName


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
