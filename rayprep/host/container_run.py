"""The container run that this process is in: its pointer and its manifest, read and written."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from rayprep.host.atomic import write_text
from rayprep.model.base import read_tolerant
from rayprep.model.errors import BadRequest
from rayprep.model.manifest import POINTER, POINTER_NAME, Manifest, merged, parse_pointer, pointer_text
from rayprep.model.written import shown_text

_LOCK_S = 10.0


def read_container_run(telemetry: Path) -> Manifest | None:
    """The manifest that the pointer below `telemetry` leads to; None where this is not inside that container.

    On the host the same pointer stands in the same folder, under another name than the one in the manifest.
    """
    try:
        path = parse_pointer((telemetry / POINTER_NAME).read_text(encoding="utf-8"))[POINTER]
        manifest = read_tolerant(Manifest, Path(path).read_bytes())
    except (OSError, ValueError, KeyError):  # of which ValidationError and UnicodeDecodeError are
        return None
    inside = manifest.telemetry_root.container_path == str(telemetry)
    return manifest if inside and manifest.stopped_at is None else None


def write_manifest(manifest: Manifest) -> None:
    """Writes the manifest, and then the pointer, so that whoever finds the one finds the other whole.

    Raises:
        OSError: one of them cannot be written.
    """
    path = Path(manifest.manifest.container_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, shown_text(manifest))
    pointer, text = Path(manifest.telemetry_root.container_path) / POINTER_NAME, pointer_text(manifest.manifest)
    try:
        write_text(pointer, text)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EACCES, errno.EROFS):
            raise
        pointer.write_text(text, encoding="utf-8")  # a file that is itself a mount point cannot be renamed over


def change_manifest(container: Manifest, changes: Mapping[tuple[str, ...], object]) -> None:
    """Makes `changes` in the manifest of the run that this process is in. Raises as `update_manifest` does."""
    path = Path(container.manifest.container_path)
    update_manifest(path, lambda text: merged(text, str(path), changes))


def update_manifest(path: Path, change: Callable[[str], str]) -> None:
    """Replaces the manifest by what `change` makes of its text, with no other rayprep writing in between.

    Raises:
        BadRequest: it cannot be read, or is no manifest; it is then as it was.
        OSError: it cannot be written, or somebody has had its lock for too long.
    """
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_S, mode=0o664):
        write_text(path, change(read_text(path)))


def read_text(path: Path) -> str:
    """A manifest's text. Raises BadRequest where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadRequest(f"manifest {path} cannot be read: {why}", hint="give a container run's manifest") from None
