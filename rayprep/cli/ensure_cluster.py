"""`rayprep ensure --cluster` and `rayprep status`: the same request on all hosts of a Ray cluster."""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rayprep.base.errors import BadRequest, RayprepError
from rayprep.base.records import utc_now
from rayprep.base.written import result_text
from rayprep.cli import output
from rayprep.cli.campaign import run_each
from rayprep.cli.main import say, set_ray_environment
from rayprep.cli.request import Flags, node_requests
from rayprep.cli.reusable import Kept
from rayprep.host.environment import for_ray
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import prepare_root, root_unfit
from rayprep.host.locks import acquire_run
from rayprep.model.events import run_end
from rayprep.model.fleet.parts import WORTH_S
from rayprep.model.fleet.result import FleetResult, closed
from rayprep.model.fleet.rollout import make_rollout
from rayprep.model.fleet.spec import FleetSpec, VerifyScope, parse_labels
from rayprep.model.fleet.status import FleetStatus
from rayprep.node.request import NodeRequest
from rayprep.report.fleet_view import FleetView, choose_fleet_view, fleet_table
from rayprep.report.screen import Screen
from rayprep.report.traces import traced_fleet

if TYPE_CHECKING:
    from rayprep.fleet.agent.messages import Asked
    from rayprep.fleet.runtime.process import RayProcess


@dataclass
class FleetFlags:
    """What was given on the command line about the fleet."""

    address: str | None = None
    nodes: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    require_uniform: bool = False
    rollout: str | None = None
    canary: int | None = None
    wave: str | None = None
    max_failures: int | None = None
    node_retries: int = 1
    deal_from: float | None = None
    verify: str | None = None

    def spec(self) -> FleetSpec:
        """Raises BadRequest."""
        if self.rollout not in (None, "all"):
            raise BadRequest(
                f"--rollout {self.rollout!r}", hint="it is all; for fewer at once give --canary and --wave"
            )
        if self.rollout and (self.canary is not None or self.wave is not None):
            raise BadRequest("--rollout all and --canary or --wave exclude each other", hint="leave one out")
        if self.deal_from is not None and not self.deal_from >= 0:
            raise BadRequest(f"--deal-from {self.deal_from} is no time", hint="give 0 or more seconds")
        # Wrong values are refused before anybody is asked.
        make_rollout(
            (), canary=self.canary, wave=self.wave, max_failures=self.max_failures, node_retries=self.node_retries
        )
        return FleetSpec(
            nodes=_names(self.nodes),
            exclude=_names(self.exclude),
            labels=parse_labels(_names(self.labels)),
            require_uniform=self.require_uniform,
            canary=self.canary,
            wave=self.wave,
            max_failures=self.max_failures,
            node_retries=self.node_retries,
            verify=VerifyScope(self.verify or "all"),
            deal_from_s=WORTH_S if self.deal_from is None else self.deal_from,
        )


def _names(given: list[str]) -> tuple[str, ...]:
    """Repeated, or with commas between."""
    return tuple(name for each in given for name in each.split(",") if name)


def run(flags: Flags, fleet: FleetFlags, *, json_lines: bool, debug: bool) -> int:
    """Returns the exit status.

    Raises:
        RayprepError: what fails before a result can be written.
    """
    environ = dict(os.environ)
    spec, address = fleet.spec(), address_of(fleet.address, environ)
    requests = node_requests(flags, environ)
    with Interrupts() as interrupts, Kept(lambda: _attached(address, interrupts, debug=debug)) as ray:

        def one(request: NodeRequest) -> FleetResult:
            more = request is not requests.each[-1]
            return _Run(flags, request, spec, address, interrupts, more).go(ray, json_lines=json_lines)

        return run_each(requests, interrupts, one, json_lines=json_lines)


@contextmanager
def _attached(address: str, interrupts: Interrupts, *, debug: bool) -> "Iterator[RayProcess]":
    from rayprep.fleet.runtime.process import RayProcess
    from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT

    gc.enable()  # work may take hours
    with RayProcess(interrupts, for_ray(os.environ, CLUSTER_ENVIRONMENT), Path("/")) as process:
        process.attach(address, debug=debug)
        interrupts.as_flag()
        yield process


@dataclass(frozen=True)
class _Run:
    """One request on the cluster."""

    flags: Flags
    request: NodeRequest
    spec: FleetSpec
    address: str
    interrupts: Interrupts
    more: bool

    def go(self, ray: "Kept[RayProcess]", *, json_lines: bool) -> FleetResult:
        run_id, layout = self.request.run_id, self.request.layout
        prepare_root(layout.telemetry, "telemetry")
        layout.refuse_strange_runs(run_id)
        with acquire_run(layout.run_lock(run_id), run_id, lambda: self.interrupts.asked, layout.runs):
            result = self._drive(ray, json_lines=json_lines)
            for error in result.errors:
                say(error.error_type.value, error.message, error.exit_code)
            output.for_programs(f"RESULT_JSON {layout.run(run_id) / 'fleet_result.json'}")
            output.for_programs(f"RESULT_STATUS {result.status_line}")
            return result

    def _drive(self, kept: "Kept[RayProcess]", *, json_lines: bool) -> FleetResult:
        from rayprep.fleet.messages import FleetJob

        request, last = self.request, list[FleetResult]()
        job = FleetJob(self._asked(), self.spec, request.layout, self.address, self.more)
        shown = traced_fleet(choose_fleet_view(json_lines=json_lines), request.resolved.spec.tracing, request.run_id)
        with shown as view:

            def update(result: FleetResult) -> None:
                last[:] = [result]
                view.update(result)

            try:
                with kept.held() as ray:
                    return ray.prepare_fleet(job, view, update)
            except RayprepError as error:
                if not last:
                    raise
                return self._close(last[0], error, view)

    def _asked(self) -> "Asked":
        from rayprep.fleet.agent.messages import Asked

        flags, request, layout = self.flags, self.request, self.request.layout
        return Asked(
            resolved=request.resolved,
            run_id=request.run_id,
            # Absolute, since the agents run in other folders; without a flag each host has its own.
            profiles_root=str(layout.profiles) if flags.profiles_root else None,
            telemetry_root=str(layout.telemetry) if flags.telemetry_root else None,
            deep=flags.deep,
            verify_only=flags.verify_only,
        )

    def _close(self, last: FleetResult, error: RayprepError, view: FleetView) -> FleetResult:
        """Writes the end that the driver could not write, and says it."""
        result, layout = closed(last, error, utc_now()), self.request.layout
        view.update(result)
        view.show(run_end(result.status.value, error, result.run.duration_s))
        path = layout.run(self.request.run_id) / "fleet_result.json"
        try:
            self.request.layout.runs.write(path, result_text(result))
        except OSError as problem:
            raise root_unfit(layout.telemetry, "telemetry", problem) from None
        return result


def address_of(flag: str | None, environ: Mapping[str, str]) -> str:
    """Never a guess: a bare Ray would start a cluster of its own beside the one that is meant. Raises BadRequest."""
    address = flag or environ.get("RAY_ADDRESS")
    if not address:
        raise BadRequest("this needs the cluster's address", hint="give --address HOST:PORT, or set RAY_ADDRESS")
    return address


WATCH_S = 2.0


def status(address: str | None, run_id: str | None, *, watch: bool, json_output: bool) -> int:
    """Prints the live state of the cluster's runs, with `watch` until none goes on. Exit 3 where none does."""
    from rayprep.fleet.actors import find_status
    from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT, joined_ray

    set_ray_environment(CLUSTER_ENVIRONMENT)
    with joined_ray(address_of(address, dict(os.environ))):
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
