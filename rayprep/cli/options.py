"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.model.spec import DeviceChoice

Model = Annotated[str | None, typer.Option("--model", help="Folder with a config.json, that file, or a model's name.")]
Tp = Annotated[int | None, typer.Option("--tp", help="Tensor-parallel size (default 1).")]
ProfilesRoot = Annotated[str | None, typer.Option("--profiles-root", help="Where the caches are.")]
TelemetryRoot = Annotated[str | None, typer.Option("--telemetry-root", help="Where logs and results go.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cuda or cpu (default auto).")]
Json = Annotated[bool, typer.Option("--json", help="JSON for tools in place of text for people.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show traces.")]
Deep = Annotated[bool, typer.Option("--deep", help="Hash every file that a completion lists.")]
SpecFile = Annotated[Path | None, typer.Option("--spec-file", help="JSON spec; flags win over it.")]
ServerArgs = Annotated[list[str] | None, typer.Option("--server-arg", help="Handed to SGLang; repeatable.")]
BatchSizes = Annotated[list[int] | None, typer.Option("--batch-size", help="Repeatable (default 1 and 8).")]
MaxSeqLen = Annotated[int | None, typer.Option("--max-seq-len", help="Context length (default: the stage's own).")]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds for each stage (default 3600).")]
Heartbeat = Annotated[float | None, typer.Option("--heartbeat-sec", help="(default 60)")]
WarmupPort = Annotated[int | None, typer.Option("--warmup-port", help="(default 30999)")]
MemFraction = Annotated[float | None, typer.Option("--mem-fraction", help="(default 0.96)")]
LoadFormat = Annotated[str | None, typer.Option("--load-format", help="dummy (default), or auto for real weights.")]
OtlpEndpoint = Annotated[
    str | None, typer.Option("--otlp-endpoint", help="Traces go there: HOST:PORT for gRPC, or http://HOST:PORT.")
]
Slices = Annotated[
    str | None, typer.Option("--slices", help="Servers of TP GPUs that prove at once: a number (default 1), or all.")
]
RunId = Annotated[
    str | None,
    typer.Option("--run-id", help="Name of the run (default: the container run's; outside of one, from the time)."),
]
Address = Annotated[str | None, typer.Option("--address", help="Join this Ray cluster, HOST:PORT.")]
DeepGemm = Annotated[bool, typer.Option("--deep-gemm", help="DeepGEMM cubins.")]
Triton = Annotated[bool, typer.Option("--moe", "--triton", help="MoE configs and Triton kernels.")]
FlashInfer = Annotated[bool, typer.Option("--flashinfer", help="FlashInfer modules.")]
Inductor = Annotated[bool, typer.Option("--inductor", help="TorchInductor graphs.")]
Serve = Annotated[bool, typer.Option("--serve", help="What only a running server compiles.")]
All = Annotated[bool, typer.Option("--all", help="All of them, which is the default.")]
Cluster = Annotated[bool, typer.Option("--cluster", help="All hosts of the Ray cluster at --address or RAY_ADDRESS.")]
Nodes = Annotated[list[str] | None, typer.Option("--nodes", help="Only these hosts; commas or repeated.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Not these hosts; commas or repeated.")]
Labels = Annotated[list[str] | None, typer.Option("--labels", help="Only hosts with these labels, KEY=VALUE.")]
NodeRetries = Annotated[
    int | None, typer.Option("--node-retries", help="How often a failed host starts again (default 1).")
]
RequireUniform = Annotated[bool, typer.Option("--require-uniform", help="Stop where two hosts differ in anything.")]


def refuse_without_cluster(**flags: object) -> None:
    """For a command that works on this host alone: whoever gives such a flag has most likely forgotten --cluster.

    Raises:
        BadRequest: one of these flags about a fleet was given.
    """
    for name, value in flags.items():
        if value is not None and value is not False:
            flag = f"--{name.replace('_', '-')}"
            raise BadRequest(f"{flag} needs --cluster", hint=f"give --cluster, or leave {flag} out")


def device_of(flag: str | None) -> DeviceChoice:
    """Return the device that `--device` names. Raises BadRequest."""
    try:
        return DeviceChoice(flag or "auto")
    except ValueError:
        raise BadRequest(f"--device {flag!r}", hint="use auto, cuda or cpu") from None
