"""`rayprep reset`: shows what would go, asks, and has it removed."""

import os
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest, RayprepError
from rayprep.base.records import utc_now
from rayprep.cli import on_cluster, output
from rayprep.cli.fleet_flags import FleetFlags
from rayprep.cli.options import (
    Address,
    Cluster,
    Debug,
    DeepGemm,
    Exclude,
    FlashInfer,
    Inductor,
    Json,
    Labels,
    Nodes,
    ProfilesRoot,
    Serve,
    TelemetryRoot,
    Triton,
    refuse_without_cluster,
)
from rayprep.cli.request import default_run_id
from rayprep.cli.stage_names import selection
from rayprep.host.layout import Layout, choose_roots, root_unfit
from rayprep.host.manifest_file import change_manifest
from rayprep.model.manifest_changes import removed
from rayprep.model.stages import StageName
from rayprep.report.session_log import SessionLog
from rayprep.store.reset.filters import Filters, make_filters
from rayprep.store.reset.remove import preview, reset
from rayprep.store.reset.report import ResetReport


def command(
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
        fleet = FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(on_cluster.run("reset", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    wish = Wish(
        stages=selection(deep_gemm, triton, flashinfer, inductor, serve, False),
        older_than_days=older_than,
        match_slug=match_slug,
        unreferenced=unreferenced,
        profiles_root=profiles_root,
        telemetry_root=telemetry_root,
        run_id=run_id,
    )
    raise typer.Exit(run(wish, dry_run=dry_run, yes=yes, json_output=json))


@dataclass(frozen=True)
class Wish:
    """What was given on the command line; null or empty where nothing was."""

    stages: tuple[StageName, ...] = ()
    older_than_days: float | None = None
    match_slug: str | None = None
    unreferenced: bool = False
    profiles_root: str | None = None
    telemetry_root: str | None = None
    run_id: str | None = None


def run(wish: Wish, *, dry_run: bool, yes: bool, json_output: bool) -> int:
    """Prints the report and returns the exit status.

    Raises:
        RayprepError: what fails before anything is removed.
    """
    filters = make_filters(wish.stages, wish.older_than_days, wish.match_slug, wish.unreferenced)
    layout = choose_roots(dict(os.environ), wish.profiles_root, wish.telemetry_root)
    run_id = wish.run_id or default_run_id(layout, "reset")
    if run_id != Path(run_id).name:
        raise BadRequest(f"run id {run_id!r} cannot be a file's name", hint="use letters, digits, '.', '_' and '-'")
    if dry_run:
        report = preview(layout, filters, run_id)
    elif yes or sys.stdin.isatty():
        report = _logged(layout, filters, run_id, ask=not yes)
        if warning := _tell(layout, report):
            report = report.warned(warning)
    else:
        raise BadRequest("there is no terminal to ask on before anything is removed", hint="give --yes, or --dry-run")
    if json_output:
        output.document(report)
    else:
        output.lines(_in_words(report))
    return report.exit_code


def _logged(layout: Layout, filters: Filters, run_id: str, *, ask: bool) -> ResetReport:
    try:
        log = SessionLog(layout.session_log(run_id))
    except OSError as error:
        raise root_unfit(layout.telemetry, "telemetry", error) from None

    def say(line: str) -> None:
        # A full disk is what many reset for. The log keeps what it could not write, and tries again.
        with suppress(OSError):
            log.say(line)

    def agreed(plan: ResetReport) -> bool:
        """The manifest is told first: a reset that is killed must leave nothing that reads as warm.

        A disk that is too full for that is one more reason to go on; it is told once more after.
        """
        if ask and not _ask(plan):
            return False
        _tell(layout, plan)
        return True

    say(f"[RESET {layout.profiles}] starting {filters.model_dump_json()}")
    report = reset(layout, filters, run_id, say, agreed)
    say(f"[RESET {layout.profiles}] removed {len(report.removed)} entries, {report.freed_bytes} bytes")
    try:
        log.close()
    except OSError as error:
        return report.warned(f"{layout.session_log(run_id)} could not be written: {error.strerror}")
    return report


def _tell(layout: Layout, report: ResetReport) -> str | None:
    """Tells the manifest of the container run that this is in; a warning where it could not be told."""
    if layout.container_run is None or not (changes := removed(report.completions_dropped, utc_now())):
        return None
    try:
        change_manifest(layout.container_run, changes)
    except (RayprepError, OSError) as error:
        return f"the manifest's resets could not be written: {error}"
    return None


def _ask(plan: ResetReport) -> bool:
    """On stderr, so that a report in JSON stays alone on stdout."""
    if plan.empty:
        return True
    output.lines(_in_words(plan.model_copy(update={"dry_run": True})), to_stderr=True)
    output.question("Remove all this? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _in_words(report: ResetReport) -> list[str]:
    would = "would be " if report.dry_run else ""
    entries, sizes, files = Counter[str](), Counter[str](), Counter[str]()
    for entry in report.removed:
        entries[entry.cache] += 1
        sizes[entry.cache] += entry.bytes
        files[entry.cache] += entry.files
    lines = [f"{report.profiles_root}: {_mib(report.freed_bytes)} {would}freed"]
    lines += [
        f"  {cache:<14}{count:>8} entries {files[cache]:>8} files {_mib(sizes[cache]):>12}  {would}removed"
        for cache, count in entries.items()
    ]
    lines += [f"  {path}  {would}dropped" for path in (*report.completions_dropped, *report.markers_dropped)]
    lines += [f"  {count} entries stay: {reason.replace('_', ' ')}" for reason, count in report.kept.items()]
    lines += [f"  warning: {warning}" for warning in report.warnings]
    return lines


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
