"""The coordinator actor: gathers heartbeats, events and snapshots, and writes the session log."""

from rayprep.host.atomic import write_text
from rayprep.host.layout import Layout
from rayprep.model.base import to_json
from rayprep.model.events import Event
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.report.session_log import SessionLog


class Coordinator:
    """Runs as a Ray actor; all its methods return at once."""

    def __init__(self, layout: Layout, run_id: str) -> None:
        self._log = SessionLog(layout.session_log(run_id))
        self._snapshot_path = layout.run(run_id) / "cache_snapshot.json"
        self._events: list[Event] = []

    def record(self, node: str, event: Event) -> None:
        """One event of one node, a heartbeat among them."""
        self._events.append(event)
        self._log.record(event)

    def snapshot(self, node: str, snapshot: ProfileSnapshot) -> None:
        """What lay in a node's caches before the work, kept as `cache_snapshot.json` in the run's folder."""
        write_text(self._snapshot_path, to_json(snapshot))

    def events_since(self, count: int) -> list[Event]:
        """All events after the first `count`."""
        return self._events[count:]
