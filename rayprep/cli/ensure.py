"""`rayprep ensure`, on this host or with --cluster on all hosts of a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.cli import ensure_cluster, ensure_host
from rayprep.cli.fleet_flags import FleetFlags
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
from rayprep.cli.request import Flags, proof_scope
from rayprep.cli.stage_names import selection


def command(
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
        if dry_run:
            raise BadRequest("--dry-run looks at this host alone", hint="leave --cluster out, or --dry-run")
        fleet = FleetFlags(
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
        raise typer.Exit(ensure_cluster.run(flags, fleet, json_lines=json, debug=debug))
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
    raise typer.Exit(ensure_host.run(flags, json_lines=json, dry_run=dry_run, address=address, debug=debug))
