"""Removes entries of the caches, and the completions and markers that no longer hold. What goes, the model says.

The order is what makes a kill harmless at any moment: completions go before the files that they list, folders leave
their cache in one step, and markers go last.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rayprep.base.errors import LockTimeout
from rayprep.base.file_names import is_file_name
from rayprep.base.text import printable
from rayprep.host.layout import Layout, clear_scratch
from rayprep.host.leftovers import refuse_leftovers
from rayprep.host.locks import HeldLocks, acquire, is_held, read_holder
from rayprep.host.owned import OwnedTree
from rayprep.model.caches import CacheName, Entry
from rayprep.model.stages import StageName
from rayprep.store.entries import remove_entry, still_there
from rayprep.store.markers import read_markers, remove_marker
from rayprep.store.moe_folder import drop_dangling_links
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.report import Outcome, ResetReport, planned, report_of
from rayprep.store.reset.selection import Claim, Found, Store
from rayprep.store.reset.survey import all_there, look

Say = Callable[[str], None]
"""Takes one line for the session log."""


def preview(layout: Layout, filters: Filters, run_id: str) -> ResetReport:
    """What a reset would do now. Holds no lock and changes nothing."""
    layout.refuse_strange_store()
    store = look(layout, filters)
    held = [path for path in _lock_paths(layout, filters) if is_held(path)]
    said = [f"{path} is held by {read_holder(path) or 'somebody unknown'}: reset would refuse" for path in held]
    store = replace(store, warnings=(*store.warnings, *said))
    return report_of(store, planned(store), run_id, str(layout.profiles), dry_run=True)


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
    layout.refuse_strange_store()
    with _locked(layout.store, _lock_paths(layout, filters), run_id):
        refuse_leftovers(layout)
        store = look(layout, filters)
        plan = report_of(store, planned(store), run_id, str(layout.profiles), dry_run=False)
        if not confirm(plan):
            return plan.declined()
        done = _Reset(layout, store, say).go()
        return report_of(store, done, run_id, str(layout.profiles), dry_run=False)


def _locked(store: OwnedTree, paths: Sequence[Path], run_id: str) -> HeldLocks:
    try:
        return acquire(paths, run_id, 0.0, lambda *_: None, lambda: False, store)
    except LockTimeout as error:
        raise LockTimeout(error.message, hint="wait until the named holder is done, then reset again") from None


def _lock_paths(layout: Layout, filters: Filters) -> list[Path]:
    """Of every slug that is known here and concerned, then the store's: the order in which a run takes them."""
    names = [name for stage in StageName for name in layout.store.names(layout.completions(stage))]
    slugs = {Path(name).stem.rpartition("-tp")[0] for name in names if name.endswith(".json")} | {
        slug for slug, _ in read_markers(layout)
    }
    # A first build has no completion yet.
    slugs |= {
        Path(name).stem
        for name in layout.store.names(layout.store_lock.parent)
        if is_file_name(name) and name.endswith(".lock")
    }
    paths = {layout.slug_lock(slug) for slug in slugs if slug and filters.fits_slug(slug)}
    return [*sorted(paths - {layout.store_lock}), layout.store_lock]


class _Reset:
    """Carries out one choice, under the locks."""

    def __init__(self, layout: Layout, store: Store, say: Say) -> None:
        self.layout, self.store, self.say = layout, store, say
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
            clear_scratch(self.layout)
        if CacheName.MOE_CONFIGS in self.store.filters.caches:
            self._drop_links()
        for slug, stage in self.store.finished_markers(self.done.keys):
            self._drop_marker(slug, stage)
        return self.done

    def _clear_dead_runs(self) -> None:
        """What a killed run or reset had moved aside. Nobody else works here while we hold the store's lock."""
        clear_scratch(self.layout)
        for folder in map(self.layout.completions, StageName):
            for name in self.layout.store.names(folder):
                if name.endswith(".gone"):
                    with contextlib.suppress(OSError):  # no reader looks at it
                        self.layout.store.unlink(folder / name)

    def _set_aside(self, claims: Iterable[Claim]) -> None:
        """Gives completions a name that no reader looks at; they come back if their files stay."""
        for claim in claims:
            path = self.layout.completion(claim.stage, claim.key)
            try:
                aside = path.with_name(f"{claim.key}.gone")
                self.layout.store.rename(path, aside)
                self.aside[claim] = aside
            except OSError as error:
                self._fail(claim.stage, f"{path} could not be dropped: {error.strerror}")
                self.standing |= claim.entries

    def _settle(self) -> None:
        stale = set(self.store.stale_claims(self.done.keys))
        for claim, path in self.aside.items():
            original = self.layout.completion(claim.stage, claim.key)
            if claim not in stale and all_there(self.layout, claim.files):
                self.layout.store.rename(path, original)
            else:
                self.layout.store.unlink(path)
                self.done.completions.append(claim)
                self.say(f"[RESET {claim.stage}] dropped completion {original}")

    def _remove(self, victim: Found) -> None:
        cache = victim.key[0]
        try:
            remove_entry(self.layout, victim.key, victim.places)
            self.done.freed += victim.size
        except OSError as error:
            where = printable(str(error.filename))
            self._fail(cache, f"{victim.name} could not be removed: {error.strerror} ({where})")
        if not still_there(self.layout.cache(cache), victim.places):
            self.done.removed.append(victim)
            path = self.layout.profiles / victim.name
            self.say(f"[RESET {cache}] removed {path} ({victim.size} bytes, {victim.files} files)")

    def _drop_links(self) -> None:
        """Which are no part of any entry, and show where a config was that has gone."""
        try:
            for link in drop_dangling_links(self.layout):
                self.say(f"[RESET {CacheName.MOE_CONFIGS}] removed link {link}")
        except OSError as error:
            self._fail(CacheName.MOE_CONFIGS, f"{error.filename} could not be removed: {error.strerror}")

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
