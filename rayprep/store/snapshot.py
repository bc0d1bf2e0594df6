"""The snapshot of all caches: what lies there, and whether this host can use it."""

import contextlib
import time
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from rayprep.base.records import parse_utc, utc_from_timestamp, utc_now
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Check, CheckState, Completion, best, check_completion
from rayprep.model.signature import Signature
from rayprep.model.snapshot import CacheSnapshot, PartialInfo, ProfileSnapshot, SlugState
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName
from rayprep.store.completions import Unreadable, read_completions
from rayprep.store.markers import read_markers
from rayprep.store.scan import CacheScan, hash_files, scan_cache

_ALWAYS_HASHED = frozenset({StageName.MOE_TUNE})
"""One or two small files, which are read anyway: the result tells their hash, and that a server has used them."""
_CLOCK_MARGIN_S = 2.0
"""A completion knows no parts of a second, and its clock may be another than that of the files."""


@dataclass(frozen=True)
class Wanted:
    """Which model's completions count; all of them where there is no `Wanted`."""

    slug: str
    config_digest: str
    tp: int

    def fits(self, completion: Completion) -> bool:
        identity = completion.identity
        return (identity.config_digest, identity.tp) == (self.config_digest, self.tp)


@dataclass(frozen=True)
class StoreContents:
    """Everything of ours that lies under one profiles root, read once."""

    scans: Mapping[CacheName, CacheScan]
    markers: Mapping[tuple[str, StageName], PartialInfo]
    completions: Mapping[StageName, list[Completion]]
    unreadable: Mapping[StageName, list[Unreadable]]

    def changed(self, stage: StageName) -> Mapping[str, float]:
        """Those of its artifacts that were changed after the oldest completion -> when."""
        return ChainMap(*(self.scans[cache].changed for cache in STAGES[stage].caches))

    def files(self, stage: StageName) -> Mapping[str, int]:
        """The artifacts in the caches that `stage` fills; empty where no completion asks for them."""
        own, *others = (self.scans[cache].files for cache in STAGES[stage].caches)
        return ChainMap(own, *others) if others else own


def read_contents(layout: Layout, slug: str | None = None, tp: int | None = None) -> StoreContents:
    """Reads caches, markers and completions; the latter only of `slug` and `tp` where they are given.

    Raises:
        HostUnfit: a folder of ours is a link or somebody else's, or the markers cannot be read.
    """
    layout.refuse_strange_store()
    stages = {stage: read_completions(layout, stage, slug, tp) for stage in StageName}
    oldest = min((_finished(each) for found, _ in stages.values() for each in found), default=inf)
    named = {cache for stage, (found, _) in stages.items() if found for cache in STAGES[stage].caches}
    return StoreContents(
        # Only a completion's check needs the files by name.
        scans={
            cache: scan_cache(layout.profiles, cache, list_files=cache in named, since=oldest) for cache in ANSWERS_FOR
        },
        markers=read_markers(layout),
        completions={stage: good for stage, (good, _) in stages.items()},
        unreadable={stage: bad for stage, (_, bad) in stages.items()},
    )


def wrong_hashes(profiles: Path, completion: Completion, paths: Iterable[str] | None = None) -> tuple[str, ...]:
    """Find which of the listed `paths`, or of all, have not the content that was listed, or cannot be read to tell."""
    listed = list(completion.artifacts if paths is None else paths)
    # What has another size is wrong whatever is in it, and may have no end.
    now = hash_files(profiles, (path for path in listed if _size(profiles / path) == completion.artifacts[path][0]))
    return tuple(path for path in listed if now.get(path) != completion.artifacts[path][1])


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return None


def known_wrong(profiles: Path, completion: Completion, changed: Mapping[str, float], *, deep: bool) -> tuple[str, ...]:
    """`wrong_hashes` of what is always hashed, and of what was changed since it was listed; with `deep` of all.

    A file that is damaged without a change of its time or its size is found with `deep` alone.
    """
    if deep or completion.stage in _ALWAYS_HASHED:
        return wrong_hashes(profiles, completion)
    finished = _finished(completion) + _CLOCK_MARGIN_S
    later = (path for path, when in changed.items() if when > finished and path in completion.artifacts)
    return wrong_hashes(profiles, completion, later)


def _finished(completion: Completion) -> float:
    return parse_utc(completion.finished_at).timestamp()


def take_snapshot(
    layout: Layout, contents: StoreContents, signature: Signature, wanted: Wanted | None = None, deep: bool = False
) -> ProfileSnapshot:
    """Judges every cache that a stage answers for, for one model or for any.

    Args:
        deep: hash every listed file, too, not only a tuned config.
    """
    judge = _Judge(layout, contents, signature, wanted, deep)
    caches = {cache.value: judge.snapshot(cache) for cache in ANSWERS_FOR}
    return ProfileSnapshot.model_validate(
        {
            "partial": any(cache.partial for cache in caches.values()),
            "profiles_root": layout.located(layout.profiles).host_path,
            "taken_at": utc_now(),
            **caches,
        }
    )


class _Judge:
    def __init__(
        self, layout: Layout, contents: StoreContents, signature: Signature, wanted: Wanted | None, deep: bool
    ) -> None:
        self.layout, self.contents, self.signature = layout, contents, signature
        self.wanted, self.deep = wanted, deep
        self._checked: dict[StageName, list[tuple[Completion, Check]]] = {}

    def snapshot(self, cache: CacheName) -> CacheSnapshot:
        stage, scan = ANSWERS_FOR[cache], self.contents.scans[cache]
        checked = self._checks(stage)
        partial = self._marker(stage)
        verdict = self._verdict(stage, [check for _, check in checked])
        about = next((completion for completion, check in checked if check == verdict), None)
        return CacheSnapshot(
            exists=scan.exists,
            partial=partial is not None,
            partial_info=partial,
            valid=self._valid(verdict, partial, scan),
            reason=self._reason(verdict, partial, scan),
            detail=verdict.detail or None,
            differences=verdict.differences,
            path=_on_host(self.layout, self.layout.cache(cache)),
            size_bytes=scan.size_bytes,
            file_count=scan.file_count,
            latest_mtime_iso=utc_from_timestamp(scan.latest_mtime) if scan.latest_mtime is not None else None,
            newest_age_s=_age(scan.latest_mtime),
            newest_files=scan.newest_files,
            warnings=scan.warnings,
            slugs=tuple(self._slug_state(completion, check, scan) for completion, check in checked),
            signature=self._signature(about),
        )

    def _checks(self, stage: StageName) -> list[tuple[Completion, Check]]:
        if stage not in self._checked:
            relevant = [c for c in self.contents.completions[stage] if self.wanted is None or self.wanted.fits(c)]
            self._checked[stage] = [(completion, self._check(completion)) for completion in relevant]
        return self._checked[stage]

    def _check(self, completion: Completion) -> Check:
        changed = self.contents.changed(completion.stage)
        wrong = known_wrong(self.layout.profiles, completion, changed, deep=self.deep)
        return check_completion(completion, self.signature, self.contents.files(completion.stage), wrong_hashes=wrong)

    def _marker(self, stage: StageName) -> PartialInfo | None:
        slug = self.wanted.slug if self.wanted else None
        standing = (info for (who, what), info in self.contents.markers.items() if what is stage)
        return next((info for info in standing if slug in (None, info.model_slug)), None)

    def _verdict(self, stage: StageName, checks: list[Check]) -> Check:
        if not checks and (bad := self.contents.unreadable[stage]):
            return Check(state=CheckState.UNREADABLE, detail=f"{bad[0].path}: {bad[0].why}")
        return best(checks)

    def _valid(self, verdict: Check, partial: PartialInfo | None, scan: CacheScan) -> bool:
        return verdict.valid and partial is None and scan.obstacle is None

    def _reason(self, verdict: Check, partial: PartialInfo | None, scan: CacheScan) -> str | None:
        if partial is not None:
            return CheckState.IN_PROGRESS
        if scan.obstacle:
            return "not_a_plain_folder"
        return None if verdict.state is CheckState.VALID else verdict.state

    def _slug_state(self, completion: Completion, check: Check, scan: CacheScan) -> SlugState:
        identity = completion.identity
        partial = self.contents.markers.get((identity.model_slug, completion.stage))
        return SlugState(
            model_slug=identity.model_slug,
            tp_size=identity.tp,
            valid=self._valid(check, partial, scan),
            reason=self._reason(check, partial, scan),
            model_source=completion.model_source,
        )

    def _signature(self, about: Completion | None) -> Signature:
        if about is None:
            slug = {"model_slug": self.wanted.slug, "tp_size": self.wanted.tp} if self.wanted else {}
            return self.signature.model_copy(update=slug)
        identity = about.identity
        return about.signature.model_copy(update={"model_slug": identity.model_slug, "tp_size": identity.tp})


def _age(mtime: float | None) -> float | None:
    """Seconds; a file from the future, after the clock was set back, is new."""
    return None if mtime is None else round(max(0.0, time.time() - mtime), 1)


def _on_host(layout: Layout, path: Path) -> str:
    """As the host's user sees it: relative to their home where it lies below it."""
    on_host, home = Path(layout.located(path).host_path), _home_on_host(layout)
    return str(on_host.relative_to(home)) if home and on_host.is_relative_to(home) else str(on_host)


def _home_on_host(layout: Layout) -> Path | None:
    if container := layout.container_run:
        return Path(container.host_home) if container.host_home else None
    with contextlib.suppress(RuntimeError):
        return Path.home()
    return None
