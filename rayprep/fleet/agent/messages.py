"""What the driver of a fleet tells each host, and what a host answers."""

import secrets
from collections.abc import Collection, Iterable, Mapping

from pydantic import Field

from rayprep.base.records import Record, Utf8
from rayprep.model.completion import Key
from rayprep.model.fleet.grouping import HostFacts
from rayprep.model.result import NodeBlock, PrepResult, Received
from rayprep.model.spec import Resolved, StageOp
from rayprep.model.stages import StageName
from rayprep.node.request import NodeRequest
from rayprep.sglang.inventory import Answer


class Asked(Record):
    """One request for all hosts. A root that is null is each host's own, from its environment."""

    resolved: Resolved
    run_id: str
    invocation: str = Field(default_factory=lambda: secrets.token_hex(8))
    profiles_root: str | None = None
    telemetry_root: str | None = None
    gather_s: float = 0.0
    """So long a host gathers its events before it sends them: longer in a larger fleet."""
    deep: bool = False
    verify_only: bool = False
    asks_sglang: bool = False
    """Have the installed SGLang say what its server needs, where nobody has yet."""
    answers: dict[str, Answer] = Field(default_factory=dict)
    """Its words, as in a host's request."""
    part: dict[StageName, tuple[str, ...]] = Field(default_factory=dict)
    """Build just these units, for another host of the group to gather."""

    def to(self, node: NodeBlock, profiles: str, telemetry: str) -> NodeRequest:
        return NodeRequest(
            resolved=self.resolved,
            run_id=self.run_id,
            invocation=self.invocation,
            profiles_root=profiles,
            telemetry_root=telemetry,
            deep=self.deep,
            verify_only=self.verify_only,
            part=self.part,
            answers=self.answers,
            node=node,
        )

    def asking(self) -> "Asked":
        """For the host that asks its SGLang on behalf of others."""
        return self.model_copy(update={"asks_sglang": True})

    def answered(self, answers: Mapping[str, Answer]) -> "Asked":
        return self.model_copy(update={"answers": dict(answers)})

    def rebuilding(self, stages: Collection[StageName]) -> "Asked":
        """With no other stage built anew: the others were received from who has rebuilt them."""
        ops = self.resolved.spec.ops
        kept = {stage: StageOp.ENSURE for stage, op in ops.items() if op is StageOp.REBUILD and stage not in stages}
        return self._with_spec(ops={**ops, **kept})

    def rebuilt(self, keys: Iterable[Key]) -> frozenset[Key]:
        """Those of `keys` that are to be built anew, by whoever builds them."""
        spec = self.resolved.spec
        return frozenset(key for key in keys if spec.op(key[0]) is StageOp.REBUILD)

    def without_proof(self) -> "Asked":
        return self._with_spec(verify=False)

    def only(self, part: dict[StageName, tuple[str, ...]]) -> "Asked":
        return self.without_proof().model_copy(update={"part": part})

    def _with_spec(self, **changes: object) -> "Asked":
        spec = self.resolved.spec.model_copy(update=changes)
        return self.model_copy(update={"resolved": self.resolved.model_copy(update={"spec": spec})})


class Report(Record):
    """A host's look at itself."""

    host: Utf8
    rayprep_version: str
    facts: HostFacts | None = None
    """Null where the host cannot do what is asked, and `problem` says why."""
    problem: Utf8 = ""
    problem_code: int = 0
    """The exit code that it means."""
    needs_gpus: bool = False
    answer: Answer | None = None
    """Words of the installed SGLang, now or when what lies here was built."""
    may_ask: bool = False
    """It has not been asked here, and can be."""
    extras: dict[StageName, str] = Field(default_factory=dict)
    """Stages that need no work here and have files all the same, which a server made and others need as well."""


class Done(Record):
    """What one step of a host came to: exactly one of `result`, `received`, `source_problem` and `again`."""

    result: PrepResult | None = None
    extras: dict[StageName, str] = Field(default_factory=dict)
    """As in a report, after the work."""
    made: tuple[Key, ...] = ()
    """Where a part was asked for, its completions."""
    received: Received | None = None
    source_problem: Utf8 = ""
    """The source could not send, or sent what cannot be taken; the receiver is as it was."""
    again: bool = False
    """Somebody else was at it meanwhile: look again before anything is built."""
