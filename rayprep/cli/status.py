"""`rayprep status`: what the hosts of a cluster's runs are at."""

import os
import time
from typing import Annotated

import typer

from rayprep.cli import output
from rayprep.cli.fleet_flags import address_of
from rayprep.cli.options import Address, Debug, Json
from rayprep.cli.process import set_ray_environment
from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT, joined_ray
from rayprep.model.fleet.status import FleetStatus
from rayprep.report.fleet_view import fleet_table
from rayprep.report.screen import Screen

WATCH_S = 2.0


def command(
    address: Address = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only this run.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until no run goes on.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the hosts of a cluster's runs are at. Exit 3 where no run goes on."""
    raise typer.Exit(run(address, run_id, watch=watch, json_output=json))


def run(address: str | None, run_id: str | None, *, watch: bool, json_output: bool) -> int:
    """Prints the live state of the cluster's runs, with `watch` until none goes on. Exit 3 where none does."""
    set_ray_environment(CLUSTER_ENVIRONMENT)
    with joined_ray(address_of(address, dict(os.environ))):
        from rayprep.fleet.actors import find_status  # with Ray, which has read its environment and found a cluster

        found = find_status(run_id)
        while True:
            for each in found:
                output.document(each) if json_output else _show(each)
            if not found:
                output.line(f"no run{f' {run_id}' if run_id else ''} goes on")
                return 3
            if not watch:
                return 0
            time.sleep(WATCH_S)
            found = find_status(run_id)
            if not found:
                return 0


def _show(status: FleetStatus) -> None:
    screen = Screen()
    eta = f", about {status.eta_s / 60:.0f} min left" if status.eta_s else ""
    screen.line(f"{status.run_id} at {status.taken_at}{eta}")
    screen.grid(fleet_table(status))
