"""`rayprep pack`: one archive of finished caches."""

import sys
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.cli.options import Debug, Device, Json, ProfilesRoot, Tp
from rayprep.cli.package import Place, show
from rayprep.store.package.archive_file import STDIO, open_to_write
from rayprep.store.package.pack import choose, pack


def command(
    keys: Annotated[list[str], typer.Argument(help="Completions' keys, as `explain` prints them, or models' slugs.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The archive: .zst compresses it, - is standard output.")
    ],
    tp: Tp = None,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Pack finished stages' caches into one archive, for an image or another host of the same kind.

    A slug means all stages of that model at --tp that were built for this kind of host.
    """
    run(Place(device, profiles_root), keys, output, tp, json_output=json)


def run(place: Place, names: list[str], archive: str, tp: int | None, *, json_output: bool) -> None:
    """Writes the archive and prints the report; on stderr where the archive goes to stdout."""
    if archive == STDIO and sys.stdout.isatty():
        raise BadRequest("the archive would go to the terminal", hint="give --output FILE, or a pipe")
    completions = choose(place.layout, names, tp or 1, place.signature)
    with open_to_write(archive) as out:
        report = pack(place.layout, completions, out)
    report = report.model_copy(update={"sha256": out.sha256})
    show(report, archive, json_output=json_output, to_stderr=archive == STDIO)
