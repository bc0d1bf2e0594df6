"""`rayprep explain`: for each stage, why it is valid or not, and what would be built."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import typer

from rayprep.base.errors import RayprepError
from rayprep.base.records import Record, counted
from rayprep.cli import output
from rayprep.cli.failures import fail
from rayprep.cli.options import (
    BatchSizes,
    Debug,
    Deep,
    Device,
    Json,
    MaxSeqLen,
    Model,
    ProfilesRoot,
    ServerArgs,
    SpecFile,
    TelemetryRoot,
    Tp,
)
from rayprep.cli.request import Flags, Requests, node_requests
from rayprep.model.campaign import worst_exit
from rayprep.model.forecast import Forecast
from rayprep.model.gpu_kinds import gpu_kind
from rayprep.model.plan import Action, Decision
from rayprep.node import NodeRequest, Survey, forecast, take_survey
from rayprep.node.inventory import may_ask

T = TypeVar("T")
NOT_ASKED = "this is by rayprep's tables: ensure asks the installed SGLang before it builds"


def command(
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
    for_gpu: Annotated[
        str | None, typer.Option("--for", help='What would be built on such a GPU: "NVIDIA H200", or sm_90.')
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """For each stage, why it is valid or not, and what would be built."""
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
    raise typer.Exit(run(flags, json_output=json) if for_gpu is None else run_for(flags, for_gpu, json_output=json))


def run(flags: Flags, *, json_output: bool) -> int:
    """Of a campaign, one request after another, each on the caches as they are now. Returns the exit status."""
    environ = dict(os.environ)
    requests = node_requests(flags, environ)
    surveys, code = look_at_each(requests, environ)
    if json_output:
        print_plans(requests, surveys)
        return code
    for survey in filter(None, surveys):
        output.line(f"{survey.model.slug} at TP {survey.identity.tp}, from {survey.model.source}")
        for decision in survey.plan.decisions:
            output.lines(_lines(decision))
        output.line(str(survey.plan.verify))
        if may_ask(survey):
            output.line(NOT_ASKED)
    return code


def run_for(flags: Flags, gpu: str, *, json_output: bool) -> int:
    """Say what would be built on a host with such a GPU, by whoever knows. Returns the exit status."""
    environ = dict(os.environ)
    kind = gpu_kind(gpu)
    requests = node_requests(flags, environ)
    forecasts, code = for_each(requests, lambda request: forecast(request, kind, environ))
    if json_output:
        print_json(requests, forecasts)
        return code
    for expected in filter(None, forecasts):
        output.lines(_forecast_lines(expected))
    return code


_WHO = {"sglang": "the installed SGLang", "tables": "rayprep's tables", "server": "nobody before a server runs"}


def _forecast_lines(expected: Forecast) -> list[str]:
    where = f"{expected.device_name} ({expected.compute_capability}), SGLang {expected.sglang_version}"
    lines = [f"{expected.model_slug} at TP {expected.tp_size} on {where}, from {expected.model_source}"]
    lines += [f"listed by {_WHO[expected.listed_by]}"]
    lines += [f"experts: {expected.experts}"] if expected.experts else []
    for stage, part in expected.stages.items():
        detail = f" ({part.detail})" if part.detail else ""
        if not part.units:
            lines.append(f"{stage}: nothing, {part.reason}{detail}")
            continue
        who = f", listed by {_WHO[part.listed_by]}" if part.listed_by else ""
        lines.append(f"{stage}: {counted(len(part.units), 'unit')}{who}{detail}")
        lines += [f"    {unit}" for unit in part.units]
    return lines


def look_at_each(requests: Requests, environ: Mapping[str, str]) -> tuple[list[Survey | None], int]:
    """Survey each request, as `for_each` does."""
    return for_each(requests, lambda request: take_survey(request, environ))


def for_each(requests: Requests, look: Callable[[NodeRequest], T]) -> tuple[list[T | None], int]:
    """Look at each request, with what the spec file's reader warns of. Returns what was seen, and the exit status.

    Of a campaign, a request that is wrong is said and has a None, and the others are looked at all the same.

    Raises:
        BadRequest, HostUnfit: where it is no campaign.
    """
    for warning in dict.fromkeys(warning for request in requests.each for warning in request.resolved.warnings):
        output.warn(warning)
    if not requests.campaign:
        return [look(requests.each[0])], 0
    seen: list[T | None] = []
    codes = []
    for number, request in enumerate(requests.each, 1):
        try:
            seen.append(look(request))
        except RayprepError as error:
            seen.append(None)
            codes.append(fail(error, as_event=False, about=f"request {number} of the campaign"))
    return seen, worst_exit(codes)


def print_plans(requests: Requests, surveys: Sequence[Survey | None]) -> None:
    """Print each plan, as `print_json` does."""
    print_json(requests, [survey.plan if survey else None for survey in surveys])


def print_json(requests: Requests, records: Sequence[Record | None]) -> None:
    """Print a record's JSON, or of a campaign a list of them, with a null for a request that is wrong."""
    values = [record.model_dump(mode="json") if record else None for record in records]
    output.json_text(json.dumps(values if requests.campaign else values[0], indent=2, ensure_ascii=False))


def _lines(decision: Decision) -> list[str]:
    lines = [str(decision)]
    for difference in decision.check.differences:
        lines.append(f"    {difference}: it binds since {difference.why}")
    for path in decision.check.damaged[:5]:
        lines.append(f"    damaged: {path}")
    if decision.action is Action.BUILD and decision.work:
        missing = decision.check.missing_units or decision.work.units
        lines += [f"    would build {unit}" for unit in missing]
    lines.append(f"    completion: {decision.key}")
    return lines
