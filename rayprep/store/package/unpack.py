"""Takes a package in: everything is proved in a scratch folder before one file of it comes near a cache.

The order is what makes a kill harmless at any moment: a marker stands first, completions that no longer hold go, whole
entries come in by a rename each, then the completions, and the marker goes last. What a killed one leaves are whole
entries that nobody lists yet.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.records import utc_now
from rayprep.base.text import printable
from rayprep.host.layout import Layout, clear_scratch, make_scratch, os_error_type, prepare_root
from rayprep.host.leftovers import refuse_leftovers
from rayprep.host.locks import OnWait, acquire
from rayprep.host.owned import Places
from rayprep.model.completion import Completion, Key
from rayprep.model.completion_text import cleaned
from rayprep.model.signature import Signature
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.epochs import advance_epoch
from rayprep.store.markers import Marker, remove_marker, write_marker
from rayprep.store.moe_folder import keep_aside, put_back_shipped
from rayprep.store.package.manifest import PackageManifest, PackageReport, PackedFile, check_binding
from rayprep.store.package.move_in import clear_aborted, move_in, sync
from rayprep.store.package.placement import Placement, place
from rayprep.store.package.survey import look, read_back
from rayprep.store.package.tar_stream import PackageReader, Source


@dataclass(frozen=True)
class Receipt:
    """Who receives: for the markers and the locks.

    `epochs` are those of the leases under which it receives, by key; none where there is no fleet.
    """

    run_id: str
    invocation: str = ""
    epochs: Mapping[str, int] = field(default_factory=dict)
    replace: frozenset[Key] = frozenset()
    """What comes in although it is valid here: it was built anew where it comes from."""


def receive(
    layout: Layout,
    stream: Source,
    now: Signature,
    receipt: Receipt,
    *,
    timeout_s: float = 0.0,
    on_wait: OnWait = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PackageReport:
    """Unpacks a tar stream under the locks of its slugs and of the store.

    Args:
        now: this host's signature.
        timeout_s: how long to wait for a lock.

    Raises:
        BadRequest: the archive is damaged, or holds what no package may hold. Nothing has changed.
        HostUnfit: it is for another kind of host, or this one cannot take it.
        LockTimeout: somebody works on one of the slugs, or in this store.
        StageError: `lease_lost`, a package of a later epoch was here before.
    """
    reader = PackageReader(stream)
    check_binding(reader.manifest, now)
    prepare_root(layout.profiles, "profiles")
    layout.refuse_strange_store()
    slugs = {each.identity.model_slug for each in reader.manifest.completions}
    paths = [*(layout.slug_lock(slug) for slug in sorted(slugs)), layout.store_lock]
    with acquire(paths, receipt.run_id, timeout_s, on_wait, cancelled, layout.store):
        return receive_locked(layout, reader, now, receipt)


def receive_locked(layout: Layout, reader: PackageReader, now: Signature, receipt: Receipt) -> PackageReport:
    """The same for who holds those locks already, and has checked the binding."""
    refuse_leftovers(layout)
    try:
        clear_scratch(layout)  # a dead run's; nobody else works here under the lock
        here = look(layout, reader.manifest, now)
        here = replace(here, valid=frozenset(here.valid) - receipt.replace)
        placement = place(reader.manifest, here)
        _Receiver(layout, reader, placement, receipt).go(now)
    except OSError as error:
        raise HostUnfit(
            f"{printable(str(error.filename or layout.profiles))}: {error.strerror or error}",
            hint="mend it, then unpack again; what came in so far does not count before",
            error_type=os_error_type(error),
        ) from None
    finally:
        clear_scratch(layout)
    return _report(layout, reader.manifest, placement, dry_run=False)


def preview(layout: Layout, stream: Source, now: Signature) -> PackageReport:
    """Proves the whole archive and says what `receive` would do now. Holds no lock and writes nothing."""
    reader = PackageReader(stream)
    check_binding(reader.manifest, now)
    layout.refuse_strange_store()
    placement = place(reader.manifest, look(layout, reader.manifest, now))
    _check_disk(layout.profiles, reader.manifest, placement)
    for file in reader.manifest.files:
        reader.copy(file, _leave)
    reader.end()
    return _report(layout, reader.manifest, placement, dry_run=True)


class _Receiver:
    """Carries out one placement, under the locks."""

    def __init__(self, layout: Layout, reader: PackageReader, placement: Placement, receipt: Receipt) -> None:
        self.layout, self.reader, self.placement, self.receipt = layout, reader, placement, receipt
        self.fresh = layout.scratch / "package"
        self.marked: dict[tuple[str, StageName], float] = {}
        """The markers that stood before, with since when."""

    def go(self, now: Signature) -> None:
        self._check_epochs()
        self._unpack()
        if not self.placement.completions:
            return
        # What is renamed in with an old time of change must not be found empty after a loss of power.
        sync(self.layout.profiles)
        self._mark()
        given_up = self._given_up()
        keep_aside(self.layout, {*self.placement.needed, *given_up})
        self._drop_completions()
        for path in given_up:
            self.layout.caches.unlink(self.layout.profiles / path, missing_ok=True)
            put_back_shipped(self.layout, self.layout.profiles / path)
        clear_aborted(self.layout, self.marked, self.reader.manifest.completions)
        self._check_epochs()
        move_in(self.layout, self.fresh, self.placement)
        self._check_epochs()
        for each in self.placement.completions:
            write_completion(self.layout, each)
        read_back(self.layout, [cleaned(each) for each in self.placement.completions], now)
        for each in self.placement.completions:
            remove_marker(self.layout, each.identity.model_slug, each.stage)

    def _check_epochs(self) -> None:
        for each in self.reader.manifest.completions:
            if epoch := self.receipt.epochs.get(each.key):
                advance_epoch(self.layout, each.key, epoch)

    def _unpack(self) -> None:
        """Reads the archive to its end; what is needed of it lies in the scratch folder then, as it was packed."""
        needed = self.placement.needed
        files = self.reader.manifest.files
        _check_disk(self.layout.profiles, self.reader.manifest, self.placement)
        make_scratch(self.layout)
        with Places(self.layout.caches) as places:
            for file in files:
                if file.path in needed:
                    self._write(file, places)
                else:
                    self.reader.copy(file, _leave)
        self.reader.end()

    def _write(self, file: PackedFile, places: Places) -> None:
        folder, _, name = file.path.rpartition("/")
        within = places.folder(f"{self.fresh}/{folder}", make=True)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=within)
        try:
            self.reader.copy(file, partial(_write_whole, descriptor))
            os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
        finally:
            os.close(descriptor)

    def _mark(self) -> None:
        marker = Marker(
            owner_pid=os.getpid(),
            started_at=utc_now(),
            run_id=self.receipt.run_id,
            invocation=self.receipt.invocation,
            host=socket.gethostname(),
        )
        for who in sorted({(each.identity.model_slug, each.stage) for each in self.placement.completions}):
            with contextlib.suppress(FileNotFoundError):
                self.marked[who] = self.layout.store.status(self.layout.marker(*who)).st_mtime
            write_marker(self.layout, *who, marker, self.marked.get(who))

    def _given_up(self) -> frozenset[str]:
        """The MoE configs that nothing lists any more when the completions are in: servers would read them still."""
        here, _ = read_completions(self.layout, StageName.MOE_TUNE)
        going = {(each.stage, each.key) for each in (*self.placement.dropped, *self.placement.completions)}
        gone = {path for each in here if (each.stage, each.key) in going for path in each.artifacts}
        stay = [each for each in here if (each.stage, each.key) not in going]
        return frozenset(gone.difference(*(each.artifacts for each in (*stay, *self.placement.completions))))

    def _drop_completions(self) -> None:
        """Before the files that they list."""
        for each in (*self.placement.dropped, *self.placement.completions):
            self.layout.store.unlink(self.layout.completion(each.stage, each.key), missing_ok=True)


def _check_disk(profiles: Path, manifest: PackageManifest, placement: Placement) -> None:
    """Before any of it is written. Also for a root that is still to be made."""
    needed = placement.needed
    required = sum(file.size for file in manifest.files if file.path in needed)
    there = next(folder for folder in (profiles, *profiles.absolute().parents) if folder.exists())
    if required > (free := shutil.disk_usage(there).free):
        raise HostUnfit(
            f"{profiles} has {free} bytes free, the package needs {required}",
            error_type=ErrorType.INSUFFICIENT_DISK,
        )


def _leave(_: memoryview) -> None:
    """What is not needed is read and proved all the same."""


def _write_whole(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _report(layout: Layout, manifest: PackageManifest, placement: Placement, *, dry_run: bool) -> PackageReport:
    sizes = {file.path: file.size for file in manifest.files}
    needed = placement.needed
    return PackageReport(
        action="unpack",
        dry_run=dry_run,
        profiles_root=str(layout.profiles),
        completions=_names(placement.completions),
        kept=_names(placement.kept),
        dropped=_names(placement.dropped),
        entries=len(placement.whole) + len(placement.single),
        files=len(needed),
        bytes=sum(sizes[path] for path in needed),
    )


def _names(completions: Iterable[Completion]) -> tuple[str, ...]:
    return tuple(f"{each.stage}/{each.key}" for each in completions)
