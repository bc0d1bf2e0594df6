"""Removes entries of the caches, and the completions and markers that no longer hold. What goes, model/reset.py says.

The order is what makes a kill harmless at any moment: completions go before the files that they list, folders leave
their cache in one step, and markers go last.
"""

import contextlib
import errno
import itertools
import os
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayprep.host.completions import read_completions
from rayprep.host.entries import group_entries
from rayprep.host.environment import STORE_MARK
from rayprep.host.layout import Layout
from rayprep.host.locks import HeldLocks, acquire, is_held, read_holder
from rayprep.host.markers import read_markers, remove_marker
from rayprep.host.process import marked_processes
from rayprep.host.scan import printable, scan_cache
from rayprep.model.base import parse_utc
from rayprep.model.caches import CacheName, entry_of
from rayprep.model.completion import Completion
from rayprep.model.errors import ErrorType, HostUnfit, LockTimeout
from rayprep.model.reset import Claim, Entry, Filters, Found, Mark, Outcome, ResetReport, Store, planned, report_of
from rayprep.model.signature import FORMAT_VERSION
from rayprep.model.stages import StageName

Say = Callable[[str], None]
"""Takes one line for the session log."""

_IN_PLACE = (errno.EXDEV, errno.ENOSPC, errno.EDQUOT)
"""A folder cannot be moved aside but can be removed: its cache is a mount of its own, or the disk is full."""


def preview(layout: Layout, filters: Filters, run_id: str) -> ResetReport:
    """What a reset would do now. Holds no lock and changes nothing."""
    store, said = _look(layout, filters)
    held = [path for path in _lock_paths(layout, filters) if is_held(path)]
    said += [f"{path} is held by {read_holder(path) or 'somebody unknown'}: reset would refuse" for path in held]
    return report_of(store, planned(store), run_id, str(layout.profiles), dry_run=True, warnings=said)


def reset(
    layout: Layout, filters: Filters, run_id: str, say: Say, confirm: Callable[[ResetReport], bool]
) -> ResetReport:
    """Removes what `filters` choose, if `confirm` agrees to what it is shown. Holds the locks from before the look.

    Raises:
        LockTimeout: somebody works on one of the slugs, or in this store.
        HostUnfit: the store cannot be read, or parts of it that are ours are links.
    """
    if not layout.profiles.exists():  # which taking a lock would change
        return preview(layout, filters, run_id).model_copy(update={"dry_run": False})
    with _locked(_lock_paths(layout, filters), run_id):
        _refuse_leftovers(layout)
        store, said = _look(layout, filters)
        plan = report_of(store, planned(store), run_id, str(layout.profiles), dry_run=False, warnings=said)
        if not confirm(plan):
            return plan.declined()
        done = _Reset(layout, store, say).go()
        return report_of(store, done, run_id, str(layout.profiles), dry_run=False, warnings=said)


def _locked(paths: Sequence[Path], run_id: str) -> HeldLocks:
    try:
        return acquire(paths, run_id, 0.0, lambda *_: None, lambda: False)
    except LockTimeout as error:
        raise LockTimeout(error.message, hint="wait until the named holder is done, then reset again") from None


def _lock_paths(layout: Layout, filters: Filters) -> list[Path]:
    """Of every slug that is known here and concerned, then the store's: the order in which a run takes them."""
    slugs = {claim.slug for claim in _read_claims(layout)} | {slug for slug, _ in read_markers(layout)}
    # A first build has no completion yet.
    slugs |= {path.stem for path in layout.store_lock.parent.glob("*.lock")}
    # A slug that is no file name is not one of ours, and could lead anywhere.
    names = sorted(slug for slug in slugs if slug and slug == Path(slug).name and filters.fits_slug(slug))
    return [*(path for path in map(layout.slug_lock, names) if path != layout.store_lock), layout.store_lock]


def _refuse_leftovers(layout: Layout) -> None:
    """Compilers that outlived their owner and its guard could write into what is being removed."""
    ours = {os.getpid(), os.getppid()}
    for process in marked_processes(STORE_MARK, str(layout.profiles)):
        if process.pid not in ours:
            raise HostUnfit(
                f"process {process.pid} of a dead run still works in {layout.profiles}",
                hint="`rayprep ensure` ends it, or end it yourself",
                error_type=ErrorType.CLEANUP_FAILED,
            )


def _look(layout: Layout, filters: Filters) -> tuple[Store, list[str]]:
    """What lies there, and what of it could not be seen."""
    _refuse_links(layout)
    claims = _read_claims(layout)
    names: dict[Entry, set[str]] = defaultdict(set)
    for claim in claims:
        for key in claim.entries:
            names[key].add(claim.slug)
    warnings = [] if layout.profiles.is_dir() else [f"{layout.profiles} is not there"]
    now, found = time.time(), []
    for cache in filters.caches:
        for path, pile in _find(layout.profiles, cache, warnings).items():
            found.append(pile.found((cache, path), frozenset(names[cache, path])))
    return Store(filters, now, tuple(found), tuple(claims), _marked_since(layout)), warnings


def _refuse_links(layout: Layout) -> None:
    """What is unlinked must lie in the store itself, not where a link in its place leads."""
    ours = layout.profiles / ".rayprep"
    slugs = layout.markers.iterdir() if layout.markers.is_dir() else ()
    for folder in (ours, ours / "scratch", *map(layout.completions, StageName), layout.markers, *slugs):
        if folder.is_symlink():
            raise HostUnfit(f"{folder} is a link", hint="reset goes through no link; put the folder itself there")


def _marked_since(layout: Layout) -> dict[Mark, float]:
    """Where a marker does not say since when, all may be its work."""
    return {
        mark: parse_utc(info.started_at).timestamp() if info.started_at else float("-inf")
        for mark, info in read_markers(layout).items()
    }


def _read_claims(layout: Layout) -> list[Claim]:
    claims = []
    for stage in StageName:
        folder = layout.completions(stage)
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            # It would look empty, and every entry as if nothing named it.
            raise HostUnfit(f"{folder} cannot be read", error_type=ErrorType.PERMISSIONS_UNEXPECTED)
        good, bad = read_completions(layout, stage)
        claims += [_claim(layout, each) for each in good]
        keys = [Path(each.path).stem for each in bad]
        claims += [Claim(stage, key, slug=key.rpartition("-tp")[0], opaque=True) for key in keys]
    return claims


def _claim(layout: Layout, completion: Completion) -> Claim:
    return Claim(
        stage=completion.stage,
        key=completion.key,
        slug=completion.identity.model_slug,
        files=tuple(completion.artifacts),
        entries=frozenset(group_entries(completion.artifacts)),
        skipped=completion.outcome == "skipped",
        broken=not _all_there(layout, completion.artifacts),
        opaque=completion.schema_version != FORMAT_VERSION,
        finished=parse_utc(completion.finished_at).timestamp(),
    )


def _all_there(layout: Layout, files: Iterable[str]) -> bool:
    paths = (layout.profiles / file for file in files)
    return all(path.is_file() and not path.is_symlink() for path in paths)


@dataclass
class _Pile:
    """An entry while it is being found."""

    places: list[str] = field(default_factory=list)
    size: int = 0
    times: list[float] = field(default_factory=list)
    folder_time: float = 0.0

    def found(self, key: Entry, slugs: frozenset[str]) -> Found:
        newest = max(self.times, default=self.folder_time)  # a folder without a file is as old as itself
        name = "\\n".join(printable("/".join(key)).splitlines())  # one line of a log
        return Found(key, name, tuple(self.places), self.size, len(self.times), newest, slugs)


def _find(profiles: Path, cache: CacheName, warnings: list[str]) -> Mapping[str, _Pile]:
    """The entries of a cache, those of nothing but locks or scratch too. Links are no part of any."""
    top = profiles / cache.value
    piles: dict[str, _Pile] = defaultdict(_Pile)
    if top.is_symlink() or not top.is_dir():
        warnings += scan_cache(profiles, cache).warnings  # which says why
        return piles

    def unreadable(error: OSError) -> None:
        warnings.append(f"{printable(str(error.filename))} cannot be read: {error.strerror}")

    for place, folders, files in os.walk(top, onerror=unreadable):
        below = place[len(str(top)) + 1 :]
        for name in (*folders, *files):
            path = f"{below}/{name}" if below else name
            try:
                _heap(piles, cache, path, os.lstat(f"{top}/{path}"))
            except FileNotFoundError:
                continue  # a server beside us renamed it
            except OSError as error:
                unreadable(error)
    return piles


def _heap(piles: dict[str, _Pile], cache: CacheName, path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        if entry_of(cache, f"{path}/.") == path:  # a whole entry's own folder
            piles[path].places.insert(0, path)
            piles[path].folder_time = status.st_mtime
    elif not stat.S_ISLNK(status.st_mode):
        entry = entry_of(cache, path)
        piles[entry].size += status.st_size
        piles[entry].times.append(status.st_mtime)
        if not path.startswith(f"{entry}/"):
            piles[entry].places.append(path)


class _Reset:
    """Carries out one choice, under the locks."""

    def __init__(self, layout: Layout, store: Store, say: Say) -> None:
        self.layout, self.store, self.say = layout, store, say
        self.scratch = layout.profiles / ".rayprep" / "scratch"
        self.numbers = itertools.count()
        self.done = Outcome()
        self.aside: dict[Claim, Path] = {}
        self.standing: set[Entry] = set()
        """Named by a completion that could not be dropped, so they stay with it."""

    def go(self) -> Outcome:
        self._clear_dead_runs()
        try:
            self._set_aside(planned(self.store).completions)
            for victim in self.store.victims:
                if victim.key not in self.standing:
                    self._remove(victim)
        finally:
            self._settle()
            shutil.rmtree(self.scratch, ignore_errors=True)
        for slug, stage in self.store.finished_markers(self.done.keys):
            self._drop_marker(slug, stage)
        return self.done

    def _clear_dead_runs(self) -> None:
        """What a killed run or reset had moved aside. Nobody else works here while we hold the store's lock."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for stage in StageName:
            for path in self.layout.completions(stage).glob("*.gone"):
                with contextlib.suppress(OSError):  # no reader looks at it
                    path.unlink()

    def _set_aside(self, claims: Iterable[Claim]) -> None:
        """Gives completions a name that no reader looks at; they come back if their files stay."""
        for claim in claims:
            path = self.layout.completion(claim.stage, claim.key)
            try:
                self.aside[claim] = path.rename(path.with_name(f"{claim.key}.gone"))
            except OSError as error:
                self._fail(claim.stage, f"{path} could not be dropped: {error.strerror}")
                self.standing |= claim.entries

    def _settle(self) -> None:
        stale = set(self.store.stale_claims(self.done.keys))
        for claim, path in self.aside.items():
            original = self.layout.completion(claim.stage, claim.key)
            if claim not in stale and _all_there(self.layout, claim.files):
                path.rename(original)
            else:
                path.unlink()
                self.done.completions.append(claim)
                self.say(f"[RESET {claim.stage}] dropped completion {original}")

    def _remove(self, victim: Found) -> None:
        cache, top = victim.key[0], self.layout.cache(victim.key[0])
        try:
            self._take_out(top, victim)
            self.done.freed += victim.size
        except OSError as error:
            where = printable(str(error.filename))
            self._fail(cache, f"{victim.name} could not be removed: {error.strerror} ({where})")
        if not _stands(top, victim):
            self.done.removed.append(victim)
            path = self.layout.profiles / victim.name
            self.say(f"[RESET {cache}] removed {path} ({victim.size} bytes, {victim.files} files)")

    def _take_out(self, top: Path, victim: Found) -> None:
        folder, profiles = (top / victim.key[1]).parent, self.layout.profiles
        if folder.resolve() != profiles.resolve() / folder.relative_to(profiles):
            raise OSError(errno.ELOOP, "it lies behind a link", str(folder))
        for place in victim.places:
            path = top / place
            if path.is_dir() and not path.is_symlink():
                self._take_folder(path)
            else:
                path.unlink(missing_ok=True)
        if _stands(top, victim):
            raise FileExistsError(errno.EEXIST, "it was written again meanwhile", str(top / victim.key[1]))
        with contextlib.suppress(OSError):  # another entry is in it
            while folder != top:
                folder.rmdir()
                folder = folder.parent

    def _take_folder(self, path: Path) -> None:
        """In one step out of the cache, so that a kill leaves no half entry, which some libraries die of."""
        for place, _, _ in os.walk(path, onerror=_raise):
            if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        aside = self.scratch / str(next(self.numbers))
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        except OSError as error:
            if error.errno not in _IN_PLACE:
                raise
            aside = path
        shutil.rmtree(aside)

    def _drop_marker(self, slug: str, stage: StageName) -> None:
        path = self.layout.marker(slug, stage)
        try:
            remove_marker(self.layout, slug, stage)
        except OSError as error:
            self._fail(stage, f"{path} could not be dropped: {error.strerror}")
        else:
            self.done.markers.append((slug, stage))
            self.say(f"[RESET {stage}] dropped marker {path}")

    def _fail(self, subject: str, text: str) -> None:
        self.done.failures.append(text)
        self.say(f"[RESET {subject}] {text}")


def _stands(top: Path, entry: Found) -> bool:
    return any(os.path.lexists(top / place) for place in entry.places)


def _raise(error: OSError) -> None:
    raise error
