"""`rayprep doctor`: what this host has and lacks, one line each with its remedy."""

import os
import sys

import typer

from rayprep.base.errors import HostUnfit
from rayprep.cli import on_cluster, output
from rayprep.cli.fleet_flags import FleetFlags
from rayprep.cli.options import (
    Address,
    Cluster,
    Debug,
    Device,
    Exclude,
    Json,
    Labels,
    Nodes,
    ProfilesRoot,
    TelemetryRoot,
    device_of,
    refuse_without_cluster,
)
from rayprep.doctor import examine
from rayprep.doctor.bounded import answer_within
from rayprep.doctor.findings import DoctorReport, Finding, State
from rayprep.host.layout import Layout, choose_roots
from rayprep.report.screen import Grid, Screen, styled

_ROOTS_DEADLINE_S = 10.0
_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}


def command(
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
        options = {"--device": device, "--profiles-root": profiles_root, "--telemetry-root": telemetry_root}
        fleet = FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(on_cluster.run("doctor", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    raise typer.Exit(run(device, profiles_root, telemetry_root, json_output=json))


def run(device: str | None, profiles_root: str | None, telemetry_root: str | None, *, json_output: bool) -> int:
    """Prints the report, and returns the exit code: 0, or 3 where something failed."""
    environ = dict(os.environ)
    choice = device_of(device)
    report = examine(_choose_roots(environ, profiles_root, telemetry_root), environ, choice)
    if json_output:
        output.document(report)
    elif sys.stdout.isatty():
        _print_table(report)
    else:
        _print_lines(report)
    return report.exit_code


def _choose_roots(environ: dict[str, str], profiles: str | None, telemetry: str | None) -> Layout:
    """It asks whether /profiles is a mount point, which a dead file server does not answer."""
    try:
        return answer_within(
            _ROOTS_DEADLINE_S, "/profiles or /telemetry", lambda: choose_roots(environ, profiles, telemetry)
        )
    except TimeoutError as error:
        raise HostUnfit(
            str(error), hint="mend what is mounted there, or give --profiles-root and --telemetry-root"
        ) from None


def _print_lines(report: DoctorReport) -> None:
    width = max(len(finding.check) for finding in report.findings)
    for finding in report.findings:
        output.line(f"{finding.state:<4}  {finding.check:<{width}}  {_said(finding)}")
    output.line(_summary(report))


def _said(finding: Finding) -> str:
    return f"{finding.message} -> {finding.remedy}" if finding.remedy else finding.message


def _summary(report: DoctorReport) -> str:
    warned, failed = report.count(State.WARN), report.count(State.FAIL)
    return f"{report.host}: {report.count(State.OK)} ok, {warned} to look at, {failed} failed"


def _print_table(report: DoctorReport) -> None:
    grid = Grid(show_header=False)
    for _ in range(3):
        grid.column(overflow="fold")
    for finding in report.findings:
        style = _STYLES[finding.state]
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        grid.row((finding.state.value, style), finding.check, styled(finding.message, (remedy, style)))
    screen = Screen()
    screen.grid(grid)
    screen.line(_summary(report))
