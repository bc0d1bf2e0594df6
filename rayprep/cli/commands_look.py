"""The commands that only look and tell."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.cli.options import (
    Address,
    All,
    Cluster,
    Debug,
    Deep,
    DeepGemm,
    Device,
    Exclude,
    FlashInfer,
    Inductor,
    Json,
    Labels,
    Model,
    Nodes,
    ProfilesRoot,
    Serve,
    TelemetryRoot,
    Tp,
    Triton,
    refuse_without_cluster,
)


def inspect(
    model: Model = None,
    tp: Tp = None,
    deep_gemm: DeepGemm = False,
    triton: Triton = False,
    flashinfer: FlashInfer = False,
    inductor: Inductor = False,
    serve: Serve = False,
    all_caches: All = False,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    deep: Deep = False,
    cluster: Cluster = False,
    address: Address = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    labels: Labels = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what lies in each cache, and whether this host can use it."""
    if cluster:
        from rayprep.cli import ensure_cluster as fleet_command
        from rayprep.cli import on_cluster as everywhere

        options = {
            "--model": model,
            "--tp": tp,
            "--deep-gemm": deep_gemm,
            "--triton": triton,
            "--flashinfer": flashinfer,
            "--inductor": inductor,
            "--serve": serve,
            "--device": device,
            "--profiles-root": profiles_root,
            "--deep": deep,
        }
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(everywhere.run("inspect", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    from rayprep.cli import inspect as command
    from rayprep.cli.stage_names import selection

    stages = selection(deep_gemm, triton, flashinfer, inductor, serve, all_caches)
    command.run(command.Question(model, tp, device, profiles_root, deep), stages, json_output=json)


def snapshot(
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
    from rayprep.cli import inspect as command

    command.snapshot(command.Question(model, tp, device, profiles_root), manifest, if_missing=if_missing)


def manifest(
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
    import os

    from rayprep.cli import manifest as command
    from rayprep.host.layout import choose_roots

    layout = choose_roots(dict(os.environ), profiles_root, telemetry_root)
    on_host = command.OnHost(host_telemetry_root, host_profiles_root, host_home)
    command.run(run_id, layout, on_host, port_base, program or [], stopped=stopped)


def env(
    profiles_root: ProfilesRoot = None,
    env_file: Annotated[bool, typer.Option("--env-file", help="As a container's env file, not for eval.")] = False,
    debug: Debug = False,
) -> None:
    """Print the environment that a server needs to use these caches."""
    from rayprep.cli import inspect as command

    command.env(profiles_root, env_file=env_file)


def doctor(
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    cluster: Cluster = False,
    address: Address = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    labels: Labels = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what this host has and lacks, and what to do about it."""
    if cluster:
        from rayprep.cli import ensure_cluster as fleet_command
        from rayprep.cli import on_cluster as everywhere

        options = {"--device": device, "--profiles-root": profiles_root, "--telemetry-root": telemetry_root}
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(everywhere.run("doctor", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    from rayprep.cli import doctor as command

    raise typer.Exit(command.run(device, profiles_root, telemetry_root, json_output=json))


def schema(
    name: Annotated[str, typer.Argument(help="Such as prep_result; a wrong name lists them all.")],
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a file that rayprep writes."""
    from rayprep.cli import schema as command

    command.run(name)


def status(
    address: Address = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only this run.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until no run goes on.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the hosts of a cluster's runs are at. Exit 3 where no run goes on."""
    from rayprep.cli import ensure_cluster as command

    raise typer.Exit(command.status(address, run_id, watch=watch, json_output=json))


def report(
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
    from rayprep.cli import report as command

    command.run(run, telemetry_root, output)
