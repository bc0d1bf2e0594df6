"""`rayprep explain`: for each stage, why it is valid or not, and what would be built."""

import json
import os
from collections.abc import Mapping, Sequence

import typer

from rayprep.base.errors import RayprepError
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
from rayprep.model.plan import Action, Decision
from rayprep.node import Survey, take_survey


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
    raise typer.Exit(run(flags, json_output=json))


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
    return code


def look_at_each(requests: Requests, environ: Mapping[str, str]) -> tuple[list[Survey | None], int]:
    """The survey of each request, with what the spec file's reader warns of, and the exit status.

    Of a campaign, a request that is wrong is said and has no survey, and the others are looked at all the same.

    Raises:
        BadRequest, HostUnfit: where it is no campaign.
    """
    for warning in dict.fromkeys(each for request in requests.each for each in request.resolved.warnings):
        output.warn(warning)
    if not requests.campaign:
        return [take_survey(requests.each[0], environ)], 0
    surveys: list[Survey | None] = []
    codes = []
    for number, request in enumerate(requests.each, 1):
        try:
            surveys.append(take_survey(request, environ))
        except RayprepError as error:
            surveys.append(None)
            codes.append(fail(error, as_event=False, about=f"request {number} of the campaign"))
    return surveys, worst_exit(codes)


def print_plans(requests: Requests, surveys: Sequence[Survey | None]) -> None:
    """A plan's JSON, or of a campaign a list of them, with a null for a request that is wrong."""
    plans = [survey.plan.model_dump(mode="json") if survey else None for survey in surveys]
    output.json_text(json.dumps(plans if requests.campaign else plans[0], indent=2, ensure_ascii=False))


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
