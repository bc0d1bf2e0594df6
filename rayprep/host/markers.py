"""Markers: `.in_progress/<slug>/<stage>` stands from before a stage's first write until it has succeeded."""

import contextlib
from pathlib import Path

from pydantic import ValidationError

from rayprep.host.atomic import write_text
from rayprep.host.layout import Layout
from rayprep.model.base import Record, Utc, read_tolerant, to_json
from rayprep.model.snapshot import PartialInfo
from rayprep.model.stages import StageName


class Marker(Record):
    """The file's content. A marker that cannot be read still stands: its being there is what counts."""

    owner_pid: int
    started_at: Utc
    run_id: str
    host: str


def write_marker(layout: Layout, slug: str, stage: StageName, marker: Marker) -> None:
    path = layout.marker(slug, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(marker))


def remove_marker(layout: Layout, slug: str, stage: StageName) -> None:
    path = layout.marker(slug, stage)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another stage's marker stands beside it
        path.parent.rmdir()


def read_markers(layout: Layout) -> dict[tuple[str, StageName], PartialInfo]:
    """All markers that stand, by slug and stage. Names that are no stage are not ours and are left out."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(layout.markers.iterdir()):
            for stage in StageName:
                path = folder / stage.value
                if path.is_file():
                    found[folder.name, stage] = _info(path, folder.name, stage)
    return found


def _info(path: Path, slug: str, stage: StageName) -> PartialInfo:
    try:
        marker = read_tolerant(Marker, path.read_bytes())
    except (OSError, ValidationError):
        return PartialInfo(model_slug=slug, stage=stage)
    return PartialInfo(owner_pid=marker.owner_pid, started_at=marker.started_at, model_slug=slug, stage=stage)
