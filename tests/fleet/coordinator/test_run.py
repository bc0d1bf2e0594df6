"""What the coordinator keeps of a run."""

from pathlib import Path

from rayprep.fleet.coordinator.run import KeptRun
from rayprep.host.layout import Layout
from rayprep.model.events import Phase, event


def test_what_the_driver_has_heard_is_not_kept_in_memory(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "profiles", tmp_path / "telemetry")
    run = KeptRun(layout, "run")
    said = [event("serve", Phase.PROGRESS, done=number, total=9) for number in range(5)]
    run.record(said[:3])
    assert run.since(0) == said[:3]
    assert run.since(0) == said[:3], "an answer that was lost on its way is given again"
    run.record(said[3:])
    assert run.since(3) == said[3:]
    assert run.since(5) == run.since(99) == []
    assert run._events == []
    assert layout.session_log("run").read_text(encoding="utf-8").count("OPTIMIZE_JSON") == 5
