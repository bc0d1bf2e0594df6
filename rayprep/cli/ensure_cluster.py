"""`rayprep ensure --cluster`: the same request on all hosts of a Ray cluster."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayprep.base.errors import RayprepError
from rayprep.base.records import utc_now
from rayprep.base.written import result_text
from rayprep.cli import output
from rayprep.cli.campaign import run_each
from rayprep.cli.fleet_flags import FleetFlags, address_of
from rayprep.cli.request import Flags, node_requests
from rayprep.cli.reusable import Kept
from rayprep.fleet.agent.messages import Asked
from rayprep.fleet.messages import FleetJob
from rayprep.fleet.runtime.attached_process import RayProcess
from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT
from rayprep.host.environment import for_ray
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import prepare_root, root_unfit
from rayprep.host.locks import acquire_run
from rayprep.model.events import run_end
from rayprep.model.fleet.result import FleetResult, closed
from rayprep.model.fleet.spec import FleetSpec
from rayprep.node.request import NodeRequest
from rayprep.report.fleet_view import FleetView, choose_fleet_view
from rayprep.report.traces import traced_fleet


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
def _attached(address: str, interrupts: Interrupts, *, debug: bool) -> Iterator[RayProcess]:
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

    def go(self, ray: Kept[RayProcess], *, json_lines: bool) -> FleetResult:
        run_id, layout = self.request.run_id, self.request.layout
        prepare_root(layout.telemetry, "telemetry")
        layout.refuse_strange_runs(run_id)
        with acquire_run(layout.run_lock(run_id), run_id, lambda: self.interrupts.asked, layout.runs):
            result = self._drive(ray, json_lines=json_lines)
            for error in result.errors:
                output.error(error.error_type.value, error.message)
            output.for_programs(f"RESULT_JSON {layout.run(run_id) / 'fleet_result.json'}")
            output.for_programs(f"RESULT_STATUS {result.status_line}")
            return result

    def _drive(self, kept: Kept[RayProcess], *, json_lines: bool) -> FleetResult:
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

    def _asked(self) -> Asked:
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
