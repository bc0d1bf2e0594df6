"""The coordinator's own calls, without a cluster."""

import shutil
from pathlib import Path

from rayprep.fleet.coordinator.coordinator import Coordinator
from rayprep.host.layout import Layout
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.stages import StageName, StageStatus
from tests.model.samples import fleet_run, prep_result

RUN = "run"


def fleet_result() -> FleetResult:
    return FleetResult(run=fleet_run(run_id=RUN))


def warnings(events: list[Event] | None) -> list[str]:
    return [each.message or "" for each in events or () if each.phase is Phase.WARNING]


def test_a_telemetry_root_that_vanishes_costs_the_files_and_not_the_run(tmp_path: Path) -> None:
    layout, result, said = Layout(tmp_path / "p", tmp_path / "t"), fleet_result(), event("serve", Phase.PROGRESS)
    coordinator = Coordinator()
    coordinator.open_run(layout, RUN)
    shutil.rmtree(layout.telemetry)
    layout.telemetry.touch()  # so that even root cannot make the folder anew
    coordinator.update(RUN, result)
    coordinator.mirror(RUN, "gpu-0", prep_result({StageName.SERVE: StageStatus.OK}))
    coordinator.record(RUN, [said])
    events = coordinator.events_since(RUN, 0) or []
    (warning,) = warnings(events)
    assert warning.startswith(f"telemetry root {layout.telemetry} cannot be used")
    assert "\n" not in warning
    assert said in events
    assert [each.result for each in coordinator.status(RUN)] == [result]

    layout.telemetry.unlink()
    coordinator.update(RUN, result)
    assert (layout.run(RUN) / "fleet_result.json").exists(), "it is written again as soon as it can be"
    coordinator.close_run(RUN)
    assert coordinator.status(RUN) == []


def test_a_telemetry_root_that_cannot_be_used_from_the_start_is_said(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "p", tmp_path / "t")
    layout.telemetry.touch()
    coordinator = Coordinator()
    coordinator.open_run(layout, RUN)
    coordinator.record(RUN, [event("serve", Phase.PROGRESS)])
    assert len(warnings(coordinator.events_since(RUN, 0))) == 1
    coordinator.close_run(RUN)
