"""The commands that remove caches, or take them elsewhere."""

from typing import Annotated

import typer

from rayprep.cli.options import (
    Address,
    Cluster,
    Debug,
    DeepGemm,
    Device,
    Exclude,
    FlashInfer,
    Inductor,
    Json,
    Labels,
    Nodes,
    ProfilesRoot,
    Serve,
    TelemetryRoot,
    Tp,
    Triton,
    refuse_without_cluster,
)


def reset(
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="Only entries whose newest file is older.")
    ] = None,
    match_slug: Annotated[
        str | None,
        typer.Option(
            "--match-slug", metavar="PREFIX", help="Only what models whose slug begins so use, and no others."
        ),
    ] = None,
    deep_gemm: DeepGemm = False,
    triton: Triton = False,
    flashinfer: FlashInfer = False,
    inductor: Inductor = False,
    serve: Serve = False,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Only entries that no completion names.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cluster: Cluster = False,
    address: Address = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    labels: Labels = None,
    json: Json = False,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Name of the session log.")] = None,
    debug: Debug = False,
) -> None:
    """Remove cache entries, whole ones only; an entry must fit every filter given, and without one all go.

    Completions that name a removed entry go with it, so `ensure` builds it again. Markers of aborted runs go once
    nothing that such a run wrote can be left; with --older-than or --unreferenced they stay, and the next `ensure`
    clears up after them. With --match-slug the model's "nothing to build here" notes go, too.

    Refused while a run holds a lock here. Exit 3 where something could not be removed; the rest is.
    """
    if cluster:
        from rayprep.cli import ensure_cluster as fleet_command
        from rayprep.cli import on_cluster as everywhere

        options = {
            "--older-than": older_than,
            "--match-slug": match_slug,
            "--deep-gemm": deep_gemm,
            "--triton": triton,
            "--flashinfer": flashinfer,
            "--inductor": inductor,
            "--serve": serve,
            "--unreferenced": unreferenced,
            "--dry-run": dry_run,
            "--yes": yes,
            "--profiles-root": profiles_root,
            "--telemetry-root": telemetry_root,
            "--run-id": run_id,
        }
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(everywhere.run("reset", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    from rayprep.cli import reset as command
    from rayprep.cli.stage_names import selection

    wish = command.Wish(
        stages=selection(deep_gemm, triton, flashinfer, inductor, serve, False),
        older_than_days=older_than,
        match_slug=match_slug,
        unreferenced=unreferenced,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
    )
    raise typer.Exit(command.run(wish, dry_run=dry_run, yes=yes, json_output=json))


def pack(
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
    from rayprep.cli import pack as command

    command.run_pack(command.Place(device, profiles_root), keys, output, tp, json_output=json)


def unpack(
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
    from rayprep.cli import pack as command

    command.run_unpack(command.Place(device, profiles_root), file, sha256, dry_run=dry_run, json_output=json)
