"""The commands that only look and tell."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.cli.options import (
    All,
    Debug,
    Deep,
    DeepGemm,
    Device,
    FlashInfer,
    Inductor,
    Json,
    Model,
    ProfilesRoot,
    Serve,
    TelemetryRoot,
    Tp,
    Triton,
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
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what lies in each cache, and whether this host can use it."""
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
    profiles_root: ProfilesRoot = None,
    debug: Debug = False,
) -> None:
    """Take the start-up snapshot, and merge it into a manifest or print it."""
    from rayprep.cli import inspect as command

    command.snapshot(command.Question(model, tp, device, profiles_root), manifest)


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
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what this host has and lacks, and what to do about it."""
    from rayprep.cli import doctor as command

    raise typer.Exit(command.run(device, profiles_root, telemetry_root, json_output=json))


def schema(
    name: Annotated[str, typer.Argument(help="Such as prep_result; a wrong name lists them all.")],
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a file that rayprep writes."""
    from rayprep.cli import schema as command

    command.run(name)
