"""`rayprep pack` and `rayprep unpack`: one archive of finished caches, and the way back."""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass

from rayprep.base.errors import BadRequest
from rayprep.cli import output
from rayprep.cli.request import new_run_id
from rayprep.host.gpu import read_gpus, visible_gpus
from rayprep.host.layout import Layout, choose_roots
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice
from rayprep.store.package.archive_file import STDIO, open_to_read, open_to_write
from rayprep.store.package.manifest import PackageReport, parse_digest
from rayprep.store.package.pack import choose, pack
from rayprep.store.package.unpack import Receipt, preview, receive

_MMAP_THRESHOLD = -3
"""Its name in malloc.h begins with M_."""


@dataclass(frozen=True)
class Place:
    """Which caches, and for which device they are; null where the user did not say."""

    device: str | None = None
    profiles_root: str | None = None

    @property
    def layout(self) -> Layout:
        return choose_roots(dict(os.environ), self.profiles_root)

    def signature(self) -> Signature:
        """This host's. Raises BadRequest and HostUnfit."""
        try:
            choice = DeviceChoice(self.device or "auto")
        except ValueError:
            raise BadRequest(f"--device {self.device!r}", hint="use auto, cuda or cpu") from None
        environ = dict(os.environ)
        gpus = visible_gpus(read_gpus(), environ)
        return read_signature(self.layout, environ, choose_device(choice, gpus, 1), gpus)


def run_pack(place: Place, names: list[str], archive: str, tp: int | None, *, json_output: bool) -> None:
    """Writes the archive and prints the report; on stderr where the archive goes to stdout."""
    if archive == STDIO and sys.stdout.isatty():
        raise BadRequest("the archive would go to the terminal", hint="give --output FILE, or a pipe")
    completions = choose(place.layout, names, tp or 1, place.signature)
    with open_to_write(archive) as out:
        report = pack(place.layout, completions, out)
    report = report.model_copy(update={"sha256": out.sha256})
    _show(report, archive, json_output=json_output, to_stderr=archive == STDIO)


def run_unpack(place: Place, source: str, sha256: str | None, *, dry_run: bool, json_output: bool) -> None:
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
    _show(report, source, json_output=json_output)


def _give_buffers_back() -> None:
    """Has the C library return each large buffer when it is freed. It learns to keep them, which here takes 30 MiB."""
    with contextlib.suppress(AttributeError):  # another library than glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 4 << 20)


def _show(report: PackageReport, archive: str, *, json_output: bool, to_stderr: bool = False) -> None:
    if json_output:
        output.document(report, to_stderr=to_stderr)
    else:
        output.lines(_in_words(report, archive), to_stderr=to_stderr)


def _in_words(report: PackageReport, archive: str) -> list[str]:
    would = "would be " if report.dry_run else ""
    done = "packed into" if report.action == "pack" else "unpacked from"
    size = f"{report.entries} entries, {report.files} files, {report.bytes / 2**20:.1f} MiB"
    lines = [f"{report.profiles_root}: {size} {would}{done} {archive}"]
    lines += [f"  {report.sha256}"] if report.sha256 else []
    lines += [f"  {name}" for name in report.completions]
    lines += [f"  {name}  valid here already, stays" for name in report.kept]
    lines += [f"  {name}  was damaged, {would}dropped: `rayprep ensure` builds it again" for name in report.dropped]
    return lines
