"""What one host is told to do."""

from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.base import Record
from rayprep.model.spec import Resolved


class NodeRequest(Record):
    """A resolved request with the run's id and roots. The model is a name, or an absolute path on this host."""

    resolved: Resolved
    run_id: str
    profiles_root: str
    telemetry_root: str
    deep: bool = False
    """Hash every listed file before believing a completion."""

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.profiles_root), Path(self.telemetry_root))
