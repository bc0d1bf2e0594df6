"""The commands that take a request. Each lists the flags that it takes itself: `--help` shows them in that order."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.cli.options import (
    Address,
    All,
    BatchSizes,
    Cluster,
    Debug,
    Deep,
    DeepGemm,
    Device,
    Exclude,
    FlashInfer,
    Heartbeat,
    Inductor,
    Json,
    Labels,
    LoadFormat,
    MaxSeqLen,
    MemFraction,
    Model,
    NodeRetries,
    Nodes,
    OtlpEndpoint,
    ProfilesRoot,
    RequireUniform,
    RunId,
    Serve,
    ServerArgs,
    Slices,
    SpecFile,
    TelemetryRoot,
    Timeout,
    Tp,
    Triton,
    WarmupPort,
    refuse_without_cluster,
)


def ensure(
    model: Model = None,
    tp: Tp = None,
    deep_gemm: DeepGemm = False,
    moe: Triton = False,
    flashinfer: FlashInfer = False,
    inductor: Inductor = False,
    serve: Serve = False,
    all_stages: All = False,
    rebuild: Annotated[list[str] | None, typer.Option("--rebuild", help="Build this stage anew; repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Leave this stage out; repeatable.")] = None,
    block_size: Annotated[
        list[int] | None, typer.Option("--block-size", help="Must be the model's own; repeatable.")
    ] = None,
    batch_size: BatchSizes = None,
    moe_strategy: Annotated[str | None, typer.Option("--moe-strategy", help="auto, fixed or sweep.")] = None,
    moe_dtype: Annotated[str | None, typer.Option("--moe-dtype", help="Such as fp8_w8a8.")] = None,
    moe_batch_size: Annotated[
        list[int] | None, typer.Option("--moe-batch-size", help="Tokens to tune the MoE kernel for; repeatable.")
    ] = None,
    moe_tuner_script: Annotated[
        Path | None, typer.Option("--moe-tuner-script", help="SGLang's own tuner, in place of rayprep's.")
    ] = None,
    max_seq_len: MaxSeqLen = None,
    timeout: Timeout = None,
    heartbeat_sec: Heartbeat = None,
    warmup_port: WarmupPort = None,
    mem_fraction: MemFraction = None,
    load_format: LoadFormat = None,
    otlp_endpoint: OtlpEndpoint = None,
    slices: Slices = None,
    deep_gemm_via: Annotated[
        str | None, typer.Option("--deep-gemm-via", help="kernels (default), or server: SGLang compiles as it starts.")
    ] = None,
    verify: Annotated[
        str | None, typer.Option("--verify", help="Which hosts prove it on a server: all (default), canary or none.")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="The same as --verify none.")] = False,
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
    require_uniform: RequireUniform = False,
    rollout: Annotated[str | None, typer.Option("--rollout", help="all (default): every host at once.")] = None,
    canary: Annotated[int | None, typer.Option("--canary", help="So many hosts first, then waves.")] = None,
    wave: Annotated[str | None, typer.Option("--wave", help="Hosts of a wave: 25% (default) or a count.")] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", help="No further wave after more failed hosts (default 0).")
    ] = None,
    node_retries: NodeRetries = None,
    deal_from: Annotated[
        float | None,
        typer.Option("--deal-from", help="Seconds of compiling from which hosts of one kind share it (default 300)."),
    ] = None,
    deep: Deep = False,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Build what is missing, prove it, and write prep_result.json."""
    from rayprep.base.errors import BadRequest
    from rayprep.cli import ensure as command
    from rayprep.cli.request import Flags, proof_scope
    from rayprep.cli.stage_names import selection

    scope = proof_scope(verify, no_verify=no_verify)

    flags = Flags(
        model=model,
        tp=tp,
        selected=selection(deep_gemm, moe, flashinfer, inductor, serve, all_stages),
        rebuild=rebuild or [],
        skip=skip or [],
        block_sizes=block_size,
        batch_sizes=batch_size,
        moe_strategy=moe_strategy,
        moe_dtype=moe_dtype,
        moe_batch_sizes=moe_batch_size,
        moe_tuner_script=moe_tuner_script,
        max_seq_len=max_seq_len,
        timeout_s=timeout,
        heartbeat_s=heartbeat_sec,
        warmup_port=warmup_port,
        mem_fraction=mem_fraction,
        load_format=load_format,
        otlp_endpoint=otlp_endpoint,
        slices=slices,
        deep_gemm_via=deep_gemm_via,
        verify=None if scope is None else scope != "none",
        device=device,
        server_args=server_arg,
        spec_file=spec_file,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
        deep=deep,
    )
    if cluster:
        from rayprep.cli import ensure_cluster as fleet_command

        if dry_run:
            raise BadRequest("--dry-run looks at this host alone", hint="leave --cluster out, or --dry-run")
        fleet = fleet_command.FleetFlags(
            address=address,
            nodes=nodes or [],
            exclude=exclude or [],
            labels=labels or [],
            require_uniform=require_uniform,
            rollout=rollout,
            canary=canary,
            wave=wave,
            max_failures=max_failures,
            node_retries=1 if node_retries is None else node_retries,
            deal_from=deal_from,
            verify=scope,
        )
        raise typer.Exit(fleet_command.run(flags, fleet, json_lines=json, debug=debug))
    refuse_without_cluster(
        nodes=nodes,
        exclude=exclude,
        labels=labels,
        require_uniform=require_uniform,
        rollout=rollout,
        canary=canary,
        wave=wave,
        max_failures=max_failures,
        node_retries=node_retries,
        deal_from=deal_from,
    )
    raise typer.Exit(command.run(flags, json_lines=json, dry_run=dry_run, address=address, debug=debug))


def verify(
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
    from rayprep.cli import ensure as command
    from rayprep.cli.request import Flags

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
        from rayprep.cli import ensure_cluster as fleet_command

        # A second try would find what the server of the first has compiled.
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [], node_retries=0)
        raise typer.Exit(fleet_command.run(flags, fleet, json_lines=json, debug=debug))
    refuse_without_cluster(nodes=nodes, exclude=exclude, labels=labels)
    raise typer.Exit(command.run(flags, json_lines=json, dry_run=False, address=address, debug=debug))


def explain(
    model: Model = None,
    tp: Tp = None,
    batch_size: BatchSizes = None,
    max_seq_len: MaxSeqLen = None,
    device: Device = None,
    server_arg: ServerArgs = None,
    spec_file: SpecFile = None,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    deep: Deep = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """For each stage, why it is valid or not, and what would be built."""
    from rayprep.cli import explain as command
    from rayprep.cli.request import Flags

    flags = Flags(
        model=model,
        tp=tp,
        batch_sizes=batch_size,
        max_seq_len=max_seq_len,
        device=device,
        server_args=server_arg,
        spec_file=spec_file,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        deep=deep,
    )
    raise typer.Exit(command.run(flags, json_output=json))
