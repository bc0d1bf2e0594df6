"""`rayprep snapshot`: the caches as they are at a container's start, for its manifest."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.cli import output
from rayprep.cli.inspect import Question, look
from rayprep.cli.options import Debug, Device, Model, ProfilesRoot, Tp
from rayprep.host.manifest_file import read_text, update_manifest
from rayprep.model.container_manifest import has_snapshot, merge_snapshot


def command(
    model: Model = None,
    tp: Tp = None,
    device: Device = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Merge into this file's profile_cache.start.")
    ] = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Only where the manifest has none: one that it has stays.")
    ] = False,
    profiles_root: ProfilesRoot = None,
    debug: Debug = False,
) -> None:
    """Take the start-up snapshot, and merge it into a manifest or print it."""
    run(Question(model, tp, device, profiles_root), manifest, if_missing=if_missing)


def run(question: Question, manifest: Path | None, *, if_missing: bool) -> None:
    """Prints the snapshot, or merges it into `manifest` without touching its other fields.

    With `if_missing` one that the manifest has stays. Raises BadRequest where the manifest cannot be read.
    """
    if manifest is None:
        output.document(look(question))
        return

    def stays(text: str) -> bool:
        return if_missing and has_snapshot(text)

    if stays(read_text(manifest)):  # which spares the look, and is asked again under the lock
        output.line(f"profile_cache.start is in {manifest} already")
        return
    taken = look(question)
    update_manifest(manifest, lambda text: text if stays(text) else merge_snapshot(text, str(manifest), taken))
    output.line(f"profile_cache.start written to {manifest}")
