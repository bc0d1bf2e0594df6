"""`rayprep verify`: the proof alone, of a server that the flags imply or of a command of the user's own."""

from typing import Annotated

import typer

from rayprep.cli import ensure_cluster, ensure_host
from rayprep.cli.fleet_flags import FleetFlags
from rayprep.cli.options import (
    Address,
    Cluster,
    Debug,
    Device,
    Exclude,
    Heartbeat,
    Json,
    Labels,
    LoadFormat,
    MaxSeqLen,
    MemFraction,
    Model,
    Nodes,
    OtlpEndpoint,
    ProfilesRoot,
    RunId,
    ServerArgs,
    Slices,
    SpecFile,
    TelemetryRoot,
    Timeout,
    Tp,
    WarmupPort,
    refuse_without_cluster,
)
from rayprep.cli.request import Flags


def command(
    server_command: Annotated[
        list[str] | None, typer.Argument(help="After --: the campaign's own server command.", show_default=False)
    ] = None,
    model: Model = None,
    tp: Tp = None,
    max_seq_len: MaxSeqLen = None,
    timeout: Timeout = None,
    heartbeat_sec: Heartbeat = None,
    warmup_port: WarmupPort = None,
    mem_fraction: MemFraction = None,
    load_format: LoadFormat = None,
    otlp_endpoint: OtlpEndpoint = None,
    slices: Slices = None,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    run_id: RunId = None,
    spec_file: SpecFile = None,
    server_arg: ServerArgs = None,
    cluster: Cluster = False,
    address: Address = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    labels: Labels = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a server against the prepared caches, and prove that it compiles nothing. Exit 14 where it does.

    Without a command of your own, the server is the one that `ensure` was given, or that the flags imply.
    """
    flags = Flags(
        model=model,
        tp=tp,
        max_seq_len=max_seq_len,
        timeout_s=timeout,
        heartbeat_s=heartbeat_sec,
        warmup_port=warmup_port,
        mem_fraction=mem_fraction,
        load_format=load_format,
        otlp_endpoint=otlp_endpoint,
        slices=slices,
        verify_only=True,
        server_command=server_command,
        device=device,
        server_args=server_arg,
        spec_file=spec_file,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
    )
    if cluster:
        # A second try would find what the server of the first has compiled.
        fleet = FleetFlags(address, nodes or [], exclude or [], labels or [], node_retries=0)
        raise typer.Exit(ensure_cluster.run(flags, fleet, json_lines=json, debug=debug))
    refuse_without_cluster(nodes=nodes, exclude=exclude, labels=labels)
    raise typer.Exit(ensure_host.run(flags, json_lines=json, dry_run=False, address=address, debug=debug))
