"""The commands that take a request. Each lists the flags that it takes itself: `--help` shows them in that order."""

from typing import Annotated

import typer

from rayprep.cli.options import (
    Address,
    All,
    BatchSizes,
    Debug,
    Deep,
    DeepGemm,
    Device,
    FlashInfer,
    Heartbeat,
    Inductor,
    Json,
    LoadFormat,
    MaxSeqLen,
    MemFraction,
    Model,
    ProfilesRoot,
    RunId,
    Serve,
    ServerArgs,
    SpecFile,
    TelemetryRoot,
    Timeout,
    Tp,
    Triton,
    WarmupPort,
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
    max_seq_len: MaxSeqLen = None,
    timeout: Timeout = None,
    heartbeat_sec: Heartbeat = None,
    warmup_port: WarmupPort = None,
    mem_fraction: MemFraction = None,
    load_format: LoadFormat = None,
    deep_gemm_via: Annotated[
        str | None, typer.Option("--deep-gemm-via", help="kernels (default), or server: SGLang compiles as it starts.")
    ] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Prove it on a server at the end (default), or not.")
    ] = None,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    run_id: RunId = None,
    spec_file: SpecFile = None,
    server_arg: ServerArgs = None,
    address: Address = None,
    deep: Deep = False,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Build what is missing, prove it, and write prep_result.json."""
    from rayprep.cli import ensure as command
    from rayprep.cli.request import Flags
    from rayprep.cli.stage_names import selection

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
        max_seq_len=max_seq_len,
        timeout_s=timeout,
        heartbeat_s=heartbeat_sec,
        warmup_port=warmup_port,
        mem_fraction=mem_fraction,
        load_format=load_format,
        deep_gemm_via=deep_gemm_via,
        verify=verify,
        device=device,
        server_args=server_arg,
        spec_file=spec_file,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
        deep=deep,
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
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    telemetry_root: TelemetryRoot = None,
    run_id: RunId = None,
    spec_file: SpecFile = None,
    server_arg: ServerArgs = None,
    address: Address = None,
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
        verify_only=True,
        server_command=server_command,
        device=device,
        server_args=server_arg,
        spec_file=spec_file,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
    )
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
    command.run(flags, json_output=json)
