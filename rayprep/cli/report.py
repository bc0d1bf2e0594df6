"""`rayprep report`: one HTML page of what a run has left."""

import errno
import os
import stat
import time
from pathlib import Path
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.base.records import counted
from rayprep.cli import output
from rayprep.cli.options import Debug, TelemetryRoot
from rayprep.host.atomic import write_text
from rayprep.host.layout import Layout, choose_roots
from rayprep.host.run_reader import read_run
from rayprep.report.page.page import render

_READER_S = 10.0
"""For a pipe's reader to come."""
_POLL_S = 0.05


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    telemetry_root: TelemetryRoot = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page (default: report.html in the run's folder).")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML page of a run: failures, timeline, what was built and shipped, and each host.

    Exit 2 where a file of the run is missing or damaged; the page then shows what the others say.
    """
    write_page(run, telemetry_root, output)


def write_page(run_id: str, telemetry_root: str | None, page: Path | None) -> None:
    """Writes the page and prints its path.

    Raises:
        BadRequest: there is no such run, the page cannot be written, or a file of it is missing or damaged. In the
            last case the page is there all the same, and shows what the other files say.
    """
    layout = choose_roots(dict(os.environ), telemetry=telemetry_root)
    layout.refuse_strange_runs(run_id)
    record = read_run(layout, run_id)
    path = page or layout.run(run_id) / "report.html"
    _write(layout, path, render(record), named=page is not None)
    output.for_programs(str(path))
    if record.damaged:
        more = f", and {counted(len(record.damaged) - 1, 'more such file')}" if record.damaged[1:] else ""
        raise BadRequest(f"{record.damaged[0]}{more}", hint="the page shows what the other files say")


def _write_special(path: Path, data: bytes) -> None:
    """Write to a pipe or a device. Raises OSError, also where nobody reads the pipe."""
    deadline = time.monotonic() + _READER_S
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _is_special(path: Path) -> bool:
    """Tell whether it is a pipe or a device, itself: a link to one may be somebody else's, but for those in /dev."""
    if path.is_relative_to("/dev") or path.is_relative_to("/proc"):
        return True
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _write(layout: Layout, path: Path, text: str, *, named: bool) -> None:
    """`named` by the user, it may be anywhere; else it belongs to the run's folder, which others may write to."""
    try:
        if not named:
            layout.runs.write(path, text)
        elif _is_special(path):
            _write_special(path, text.encode())  # such as /dev/stdout, which no file may take the place of
        else:
            write_text(path, text)
    except OSError as error:
        raise BadRequest(f"report {path} cannot be written: {error.strerror}", hint="choose another --output") from None
