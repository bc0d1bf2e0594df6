"""A container run's manifest as a file that several programs change, and the pointer to it."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rayprep.base.errors import BadRequest
from rayprep.base.written import shown_text
from rayprep.host.locks import acquire
from rayprep.host.owned import OwnedTree
from rayprep.model.container_manifest import POINTER_NAME, Manifest, merged, pointer_text

_LOCK_S = 10.0


def write_manifest(manifest: Manifest) -> None:
    """Writes the manifest, and then the pointer, so that whoever finds the one finds the other whole.

    Raises:
        OSError: one of them cannot be written.
    """
    tree = OwnedTree(Path(manifest.telemetry_root.container_path))
    tree.write(Path(manifest.manifest.container_path), shown_text(manifest))
    pointer, text = tree.root / POINTER_NAME, pointer_text(manifest.manifest)
    try:
        tree.write(pointer, text)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EACCES, errno.EROFS):
            raise
        # A file that is itself a mount point cannot be renamed over.
        with os.fdopen(tree.open(pointer, os.O_WRONLY | os.O_TRUNC | os.O_CREAT), "w", encoding="utf-8") as file:
            file.write(text)


def change_manifest(container: Manifest, changes: Mapping[tuple[str, ...], object]) -> None:
    """Makes `changes` in the manifest of the run that this process is in. Raises as `update_manifest` does."""
    path = Path(container.manifest.container_path)
    tree = OwnedTree(Path(container.telemetry_root.container_path))
    update_manifest(path, lambda text: merged(text, str(path), changes), tree)


def update_manifest(path: Path, change: Callable[[str], str], tree: OwnedTree | None = None) -> None:
    """Replaces the manifest by what `change` makes of its text, with no other rayprep writing in between.

    Args:
        tree: the root that it lies below, by plain folders; null where the user named it.

    Raises:
        BadRequest: it cannot be read, or is no manifest; it is then as it was.
        LockTimeout, HostUnfit: somebody has had its lock for too long, or it cannot be locked.
        OSError: it cannot be written.
    """
    owned = tree or OwnedTree(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with acquire([lock], "manifest", _LOCK_S, lambda *_: None, lambda: False, owned):
        owned.write(path, change(_text(owned, path)))


def read_text(path: Path) -> str:
    """The text of a manifest that the user named. Raises BadRequest where it cannot be read."""
    return _text(OwnedTree(path.parent), path)


def _text(tree: OwnedTree, path: Path) -> str:
    try:
        return tree.read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadRequest(f"manifest {path} cannot be read: {why}", hint="give a container run's manifest") from None
