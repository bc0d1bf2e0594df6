"""The container run that this process is in, by its pointer and its manifest."""

from pathlib import Path

from rayprep.base.file_names import is_file_name
from rayprep.base.records import read_tolerant
from rayprep.host.owned import OwnedTree
from rayprep.model.container_manifest import (
    LONGEST_POINTER,
    MANIFEST_NAME,
    POINTER,
    POINTER_NAME,
    Manifest,
    parse_pointer,
)


def read_container_run(telemetry: Path) -> Manifest | None:
    """The manifest that the pointer below `telemetry` leads to; None where this is not inside that container.

    On the host the same pointer stands in the same folder, under another name than the one in the manifest. What the
    two say is followed nowhere but to where the manifest of that run belongs: others may write there, too.
    """
    tree = OwnedTree(telemetry)
    try:
        path = parse_pointer(tree.read(telemetry / POINTER_NAME, LONGEST_POINTER).decode())[POINTER]
        manifest = read_tolerant(Manifest, tree.read(Path(path)))
    except (OSError, ValueError, KeyError):  # of which ValidationError and UnicodeDecodeError are
        return None
    inside = manifest.telemetry_root.container_path == str(telemetry) and _is_its_own(manifest, path)
    return manifest if inside and manifest.stopped_at is None else None


def _is_its_own(manifest: Manifest, path: str) -> bool:
    place = Path(manifest.telemetry_root.container_path, "container_runs", manifest.run_id, MANIFEST_NAME)
    return is_file_name(manifest.run_id) and path == manifest.manifest.container_path == str(place)
