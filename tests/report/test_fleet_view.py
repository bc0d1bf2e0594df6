"""A fleet's table: of many hosts as many as fit, those in trouble first."""

import io

from rayprep.model.events import Phase, event
from rayprep.model.fleet.result import FleetHost, FleetResult
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.fleet.status import FleetStatus
from rayprep.report.fleet_view import LiveFleetView, fleet_table
from tests.model.samples import MOMENT, fleet_run


def status(hosts: int, **states: HostPhase) -> FleetStatus:
    names = [f"h{number}" for number in range(hosts)]
    found = {name: FleetHost(node_id="n", address="a", state=states.get(name, HostPhase.RUNNING)) for name in names}
    return FleetStatus(run_id="r", taken_at=MOMENT, result=FleetResult(run=fleet_run(run_id="r"), hosts=found))


def test_what_does_not_fit_is_counted() -> None:
    shown = fleet_table(status(9, h7=HostPhase.FAILED), 4)
    assert shown.cells(0) == ["h7", "h0", "h1", "h2", "... 5 more"]


def test_all_hosts_where_there_is_room_or_no_limit() -> None:
    for most in (3, None):
        assert fleet_table(status(3), most).cells(0) == ["h0", "h1", "h2"]


def test_why_a_host_cannot_start_is_said_above_the_table() -> None:
    stream = io.StringIO()
    with LiveFleetView(stream) as view:
        view.show(event("ensure", Phase.END, host="vm", status="error", message="no model (fetch it)"))
        view.show(event("serve", Phase.END, host="vm", status="ok", message="12 files"))
    assert "[OPTIMIZE ensure] vm: error: no model (fetch it)" in stream.getvalue()
    assert "12 files" not in stream.getvalue().split("host", 1)[0]
