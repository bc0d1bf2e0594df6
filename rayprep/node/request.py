"""What one host is told to do."""

import os
import secrets
import socket
from pathlib import Path

from pydantic import Field

from rayprep.base.records import Record, Utc
from rayprep.host.layout import Layout
from rayprep.model.result import NodeBlock
from rayprep.model.signature import Signature, answer_kind
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.model.spec import Resolved
from rayprep.model.stages import StageName
from rayprep.sglang.inventory import Answer
from rayprep.store.markers import Marker


class NodeRequest(Record):
    """A resolved request with the run's id and roots. The model is a name, or an absolute path on this host."""

    resolved: Resolved
    run_id: str
    invocation: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Tells two runs of one id apart; every process of the run carries it."""
    profiles_root: str
    telemetry_root: str
    folder: str | None = None
    """Where the user stands, from which paths in a server's flags are meant; null on the hosts of a fleet."""
    deep: bool = False
    """Hash every listed file before believing a completion."""
    verify_only: bool = False
    """Run no stage, only the proof that nothing is left to compile."""
    part: dict[StageName, tuple[str, ...]] = Field(default_factory=dict)
    """Build just these units, of a build that several hosts share; empty for the whole."""
    node: NodeBlock | None = None
    """Who this host is in a fleet; null where there is one."""
    waited_s: float = 0.0
    """For leases, before this."""
    answers: dict[str, Answer] = Field(default_factory=dict)
    """What the installed SGLang said to who asked it for this request, by the kind of host (`answer_kind`)."""
    before: ProfileSnapshot | None = None
    """What lay in the caches before the work, for the result."""

    def answered(self, signature: Signature, answer: Answer | None) -> "NodeRequest":
        """The same, with what SGLang said on a host like this one."""
        return self.model_copy(update={"answers": {answer_kind(signature): answer}}) if answer else self

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.profiles_root), Path(self.telemetry_root), self.node.host if self.node else None)

    def marker(self, started_at: Utc) -> Marker:
        """Of this process, which writes for the request."""
        return Marker(
            owner_pid=os.getpid(),
            started_at=started_at,
            run_id=self.run_id,
            invocation=self.invocation,
            host=socket.gethostname(),
        )
