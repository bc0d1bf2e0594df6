"""Markers: `.in_progress/<slug>/<stage>` stands from before a stage's first write until it has succeeded."""

import contextlib
import threading
from pathlib import Path

from pydantic import ValidationError

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.file_names import is_file_name
from rayprep.base.records import Record, Utc, read_tolerant, to_json
from rayprep.host.layout import Layout
from rayprep.host.owned import raise_refused
from rayprep.model.snapshot import PartialInfo
from rayprep.model.stages import StageName

_LOCK = threading.Lock()
"""Stages run side by side: the last marker to go takes its folder along, while another may be on its way into it."""


class Marker(Record):
    """The file's content. A marker that cannot be read still stands: its being there is what counts."""

    owner_pid: int
    started_at: Utc
    run_id: str
    invocation: str = ""
    host: str


def write_marker(layout: Layout, slug: str, stage: StageName, marker: Marker, since: float | None = None) -> None:
    """Writes a marker whose time of change is `since` (seconds since the epoch), by default now.

    The time says from when on files in the stage's caches may be half written. An aborted run's is kept by the run
    that repairs it, which may be aborted too, so that there is no moment at which a marker has another.
    """
    with _LOCK:
        layout.store.write(layout.marker(slug, stage), to_json(marker), since)


def standing_since(layout: Layout, stage: StageName) -> float | None:
    """The time of the oldest marker of a stage, whatever model it is for: they share the stage's caches."""
    times = [layout.store.status(path).st_mtime for path in _standing(layout, stage)]
    return min(times, default=None)


def _standing(layout: Layout, stage: StageName) -> list[Path]:
    folders = [layout.markers / name for name in layout.store.names(layout.markers)]
    return [folder / stage.value for folder in folders if stage.value in _names(layout, folder)]


def refresh_markers(layout: Layout, stage: StageName) -> None:
    """Nothing half written from before this moment is left in the stage's caches."""
    for path in _standing(layout, stage):
        layout.store.touch(path)


def remove_marker(layout: Layout, slug: str, stage: StageName) -> None:
    path = layout.marker(slug, stage)
    layout.store.unlink(path, missing_ok=True)
    with _LOCK, contextlib.suppress(OSError):  # another stage's marker stands beside it
        layout.store.rmdir(path.parent)


def read_marker(layout: Layout, slug: str, stage: StageName) -> Marker:
    """Read one that stands. Raises OSError and ValidationError."""
    return read_tolerant(Marker, layout.store.read(layout.marker(slug, stage)))


def read_markers(layout: Layout) -> dict[tuple[str, StageName], PartialInfo]:
    """All markers that stand, by slug and stage. Names that are no slug or no stage are not ours and are left out.

    Raises:
        HostUnfit: the folders cannot be read. To take a marker that cannot be seen for none would be to trust
            whatever half-built files it warns of.
    """
    try:
        slugs = [name for name in _names(layout, layout.markers) if is_file_name(name)]
        return {
            (slug, stage): _info(layout, slug, stage)
            for slug in slugs
            for stage in StageName
            if stage.value in _names(layout, layout.markers / slug)
        }
    except OSError as error:
        raise_refused(error)
        raise HostUnfit(
            f"the markers in {layout.markers} cannot be read: {error.strerror}",
            hint="chmod or chown them, or choose another --profiles-root",
            error_type=ErrorType.PERMISSIONS_UNEXPECTED,
        ) from None


def _names(layout: Layout, folder: Path) -> list[str]:
    """List what lies in a folder, sorted; nothing where it is not there, or is a plain file."""
    try:
        return layout.store.names(folder)
    except NotADirectoryError:
        return []


def _info(layout: Layout, slug: str, stage: StageName) -> PartialInfo:
    try:
        marker = read_marker(layout, slug, stage)
    except (OSError, ValidationError):
        return PartialInfo(model_slug=slug, stage=stage)
    return PartialInfo(owner_pid=marker.owner_pid, started_at=marker.started_at, model_slug=slug, stage=stage)
