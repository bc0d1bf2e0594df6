"""`rayprep manifest`: what a container's start says of itself, and later of its programs and its end."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest, HostUnfit
from rayprep.base.records import Located, utc_now
from rayprep.cli import output
from rayprep.cli.options import Debug, ProfilesRoot, TelemetryRoot
from rayprep.cli.request import RUN_ID
from rayprep.host.gpu import read_gpus, visible_gpus
from rayprep.host.layout import Layout, choose_roots, root_unfit
from rayprep.host.manifest_file import update_manifest, write_manifest
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.container_manifest import (
    MANIFEST_NAME,
    PORTS,
    Manifest,
    Surface,
    parse_program,
    services,
    surfaces,
    warnings_of,
    with_programs,
)
from rayprep.model.signature import Signature
from rayprep.model.spec import DeviceChoice


def command(
    run_id: Annotated[str, typer.Option("--run-id", help="Of the container run.")],
    host_telemetry_root: Annotated[
        str | None, typer.Option("--host-telemetry-root", help="What the root is called outside the container.")
    ] = None,
    host_profiles_root: Annotated[str | None, typer.Option("--host-profiles-root", help="The same.")] = None,
    host_home: Annotated[str | None, typer.Option("--host-home", help="Of the host's user.")] = None,
    port_base: Annotated[int, typer.Option("--port-base", help="Added to every port.")] = 0,
    program: Annotated[
        list[str] | None, typer.Option("--program", metavar="NAME=STATUS[:WARNING]", help="As found; repeatable.")
    ] = None,
    stopped: Annotated[bool, typer.Option("--stopped", help="The container ends.")] = False,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    debug: Debug = False,
) -> None:
    """Write a container run's manifest and the pointer to it, or change the one that it has."""
    layout = choose_roots(dict(os.environ), profiles_root, telemetry_root)
    on_host = OnHost(host_telemetry_root, host_profiles_root, host_home)
    run(run_id, layout, on_host, port_base, program or [], stopped=stopped)


@dataclass(frozen=True)
class OnHost:
    """What the container's roots are called outside; null where they have the same names."""

    telemetry_root: str | None = None
    profiles_root: str | None = None
    home: str | None = None


def run(run_id: str, layout: Layout, on_host: OnHost, port_base: int, programs: list[str], *, stopped: bool) -> None:
    """Writes the manifest of a run that has none, and changes that of one that has.

    Raises:
        BadRequest: a value is wrong.
        HostUnfit: the telemetry root cannot be written.
    """
    if not RUN_ID.fullmatch(run_id):
        raise BadRequest(f"run id {run_id!r} cannot be a folder's name", hint="use letters, digits, '.', '_' and '-'")
    if not 0 <= port_base <= 65535 - max(PORTS.values()):
        raise BadRequest(f"--port-base {port_base} leaves no port for SGLang", hint="give 0 to 35535")
    found = dict(parse_program(text) for text in programs)
    path = layout.run(run_id) / MANIFEST_NAME
    try:
        if layout.runs.is_file(path):
            ended = utc_now() if stopped else None
            update_manifest(path, lambda text: with_programs(text, str(path), found, ended), layout.runs)
        else:
            write_manifest(_manifest(run_id, layout, path, on_host, port_base, found))
            output.for_programs(f"MANIFEST {path}")
    except OSError as error:
        raise root_unfit(layout.telemetry, "telemetry", error) from None


def _manifest(
    run_id: str, layout: Layout, path: Path, on_host: OnHost, port_base: int, programs: Mapping[str, Surface]
) -> Manifest:
    signature, problems = _signature(layout)
    found = surfaces(programs)
    telemetry = _located(layout.telemetry, on_host.telemetry_root)

    def located(path: Path) -> Located:
        return Located(
            container_path=str(path), host_path=str(Path(telemetry.host_path) / path.relative_to(layout.telemetry))
        )

    return Manifest(
        run_id=run_id,
        started_at=utc_now(),
        manifest=located(path),
        session_log=located(layout.session_log(run_id)),
        prep_result=located(layout.result(run_id)),
        telemetry_root=telemetry,
        profiles_root=_located(layout.profiles, on_host.profiles_root),
        host_home=on_host.home,
        port_base=port_base,
        signature=signature,
        services=services(port_base),
        telemetry_surfaces=found,
        warnings=(*problems, *warnings_of(found)),
    )


def _located(here: Path, on_host: str | None) -> Located:
    return Located(container_path=str(here), host_path=on_host or str(here))


def _signature(layout: Layout) -> tuple[Signature, tuple[str, ...]]:
    """The container's, and what is wrong with its GPUs: then it is that of a container without."""
    environ = dict(os.environ)
    gpus = visible_gpus(read_gpus(), environ)
    try:
        return read_signature(layout, environ, choose_device(DeviceChoice.AUTO, gpus, 1), gpus), ()
    except HostUnfit as error:
        return read_signature(layout, environ, DeviceChoice.CPU, gpus), (error.line,)
