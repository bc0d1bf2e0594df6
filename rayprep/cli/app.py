"""The commands and their flags. Each body imports what it needs, so that `--help` imports nothing."""

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
    Nodes,
    ProfilesRoot,
    RequireUniform,
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

app = typer.Typer(
    name="rayprep",
    help="Builds and proves SGLang's kernel caches before a benchmark campaign starts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Builds and proves SGLang's kernel caches before a benchmark campaign starts."""
    if version:
        import rayprep

        print(f"rayprep {rayprep.__version__}")
        raise typer.Exit


@app.command()
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
    node_retries: Annotated[int, typer.Option("--node-retries", help="How often a failed host starts again.")] = 1,
    deep: Deep = False,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Build what is missing, prove it, and write prep_result.json."""
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
        max_seq_len=max_seq_len,
        timeout_s=timeout,
        heartbeat_s=heartbeat_sec,
        warmup_port=warmup_port,
        mem_fraction=mem_fraction,
        load_format=load_format,
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
        from rayprep.cli import cluster as fleet_command

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
            node_retries=node_retries,
            verify=scope,
        )
        raise typer.Exit(fleet_command.run(flags, fleet, json_lines=json))
    raise typer.Exit(command.run(flags, json_lines=json, dry_run=dry_run, address=address, debug=debug))


@app.command()
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
        from rayprep.cli import cluster as fleet_command

        # A second try would find what the server of the first has compiled.
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [], node_retries=0)
        raise typer.Exit(fleet_command.run(flags, fleet, json_lines=json))
    raise typer.Exit(command.run(flags, json_lines=json, dry_run=False, address=address, debug=debug))


@app.command()
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


@app.command()
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
        from rayprep.cli import cluster as fleet_command
        from rayprep.cli import everywhere

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
    from rayprep.cli import inspect as command
    from rayprep.cli.stage_names import selection

    stages = selection(deep_gemm, triton, flashinfer, inductor, serve, all_caches)
    command.run(command.Question(model, tp, device, profiles_root, deep), stages, json_output=json)


@app.command()
def snapshot(
    model: Model = None,
    tp: Tp = None,
    device: Device = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Merge into this file's profile_cache.start.")
    ] = None,
    profiles_root: ProfilesRoot = None,
    debug: Debug = False,
) -> None:
    """Take the start-up snapshot, and merge it into a manifest or print it."""
    from rayprep.cli import inspect as command

    command.snapshot(command.Question(model, tp, device, profiles_root), manifest)


@app.command()
def env(
    profiles_root: ProfilesRoot = None,
    env_file: Annotated[bool, typer.Option("--env-file", help="As a container's env file, not for eval.")] = False,
    debug: Debug = False,
) -> None:
    """Print the environment that a server needs to use these caches."""
    from rayprep.cli import inspect as command

    command.env(profiles_root, env_file=env_file)


@app.command()
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
        from rayprep.cli import cluster as fleet_command
        from rayprep.cli import everywhere

        options = {"--device": device, "--profiles-root": profiles_root, "--telemetry-root": telemetry_root}
        fleet = fleet_command.FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(everywhere.run("doctor", options, fleet, json_output=json))
    from rayprep.cli import doctor as command

    raise typer.Exit(command.run(device, profiles_root, telemetry_root, json_output=json))


@app.command()
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
        from rayprep.cli import cluster as fleet_command
        from rayprep.cli import everywhere

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


@app.command()
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


@app.command()
def unpack(
    file: Annotated[str, typer.Argument(help="An archive that `pack` made; - is standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prove the archive, and change nothing.")] = False,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take in an archive that `pack` made. Every file is proved before any is moved.

    Refused on another kind of host, and while a run holds a lock here.
    """
    from rayprep.cli import pack as command

    command.run_unpack(command.Place(device, profiles_root), file, dry_run=dry_run, json_output=json)


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="Such as prep_result; a wrong name lists them all.")],
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a file that rayprep writes."""
    from rayprep.cli import schema as command

    command.run(name)


@app.command()
def status(
    address: Address = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only this run.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until no run goes on.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the hosts of a cluster's runs are at. Exit 3 where no run goes on."""
    from rayprep.cli import cluster as command

    raise typer.Exit(command.status(address, run_id, watch=watch, json_output=json))


@app.command()
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
