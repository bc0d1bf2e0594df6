"""`rayprep unpack`: the caches of an archive, taken in."""

import contextlib
import ctypes
import sys
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.cli.options import Debug, Device, Json, ProfilesRoot
from rayprep.cli.package import Place, show
from rayprep.cli.request import new_run_id
from rayprep.store.package.archive_file import STDIO, open_to_read
from rayprep.store.package.manifest import parse_digest
from rayprep.store.package.unpack import Receipt, preview, receive

_MMAP_THRESHOLD = -3
"""Its name in malloc.h begins with M_."""


def command(
    file: Annotated[str, typer.Argument(help="An archive that `pack` made; - is standard input.")],
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="DIGEST", help="Take no other archive than the one whose digest this is."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prove the archive, and change nothing.")] = False,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take in an archive that `pack` made. Every file is proved before any is moved.

    Its checksums show damage, and not who made it. --sha256 does, where the digest that `pack` printed, or `sha256sum
    FILE`, came by a way that you trust.

    Refused on another kind of host, and while a run holds a lock here.
    """
    run(Place(device, profiles_root), file, sha256, dry_run=dry_run, json_output=json)


def run(place: Place, source: str, sha256: str | None, *, dry_run: bool, json_output: bool) -> None:
    """Takes the archive in, or with `dry_run` only proves it, and prints the report."""
    expected = None if sha256 is None else parse_digest(sha256)
    _give_buffers_back()
    if source == STDIO and sys.stdin.isatty():
        raise BadRequest("there is no archive on a terminal", hint="give FILE, or a pipe")
    now = place.signature()
    with open_to_read(source, expected) as stream:
        if dry_run:
            report = preview(place.layout, stream, now)
        else:
            report = receive(place.layout, stream, now, Receipt(run_id=new_run_id("unpack")))
    report = report.model_copy(update={"sha256": expected})
    show(report, source, json_output=json_output)


def _give_buffers_back() -> None:
    """Has the C library return each large buffer when it is freed. It learns to keep them, which here takes 30 MiB."""
    with contextlib.suppress(AttributeError):  # another library than glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 4 << 20)
