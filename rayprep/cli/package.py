"""Parts that `rayprep pack` and `rayprep unpack` share: which caches they are for, and how they report."""

import os
from dataclasses import dataclass

from rayprep.cli import output
from rayprep.cli.options import device_of
from rayprep.host.gpu import read_gpus, visible_gpus
from rayprep.host.layout import Layout, choose_roots
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.signature import Signature
from rayprep.store.package.manifest import PackageReport


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
        choice = device_of(self.device)
        environ = dict(os.environ)
        gpus = visible_gpus(read_gpus(), environ)
        return read_signature(self.layout, environ, choose_device(choice, gpus, 1), gpus)


def show(report: PackageReport, archive: str, *, json_output: bool, to_stderr: bool = False) -> None:
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
