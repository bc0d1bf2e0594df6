"""One host as the driver sees it: its agent, what it is at, and how each step of it ended."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import ray

from rayprep.base.errors import ErrorType, Interrupted, RayprepError
from rayprep.fleet.actors import answers, claim_gpus, living_nodes, start_agent
from rayprep.fleet.agent.messages import Asked, Done, Report
from rayprep.fleet.handles import Handle
from rayprep.fleet.remote_calls import Pulse, outcome_of
from rayprep.model.completion import Key
from rayprep.model.fleet.grouping import HostFacts
from rayprep.model.fleet.leases import Holder
from rayprep.model.fleet.moves import Move
from rayprep.model.fleet.result import FleetError, FleetHost
from rayprep.model.fleet.rollout import HostPhase, HostState
from rayprep.model.fleet.spec import NodeInfo
from rayprep.model.result import NodeBlock, Received
from rayprep.model.stages import StageName
from rayprep.sglang.inventory import Answer

RETURN_S = 30.0
"""For a lost host to come back, under whatever node id."""


@dataclass
class Member:
    """One host. What it does is one remote call at a time, `step`."""

    node: NodeInfo
    coordinator: Handle
    agent: Handle = None
    facts: HostFacts | None = None
    needs_gpus: bool = False
    answer: Answer | None = None
    """Words of its SGLang about what a server needs, as its last look had them."""
    may_ask: bool = False
    extras: dict[StageName, str] = field(default_factory=dict)
    group: str | None = None
    state: HostState = field(default_factory=HostState)
    record: FleetHost = field(init=False)
    move: Move | None = None
    step: Handle = None
    """What the remote call will give."""
    claim: Handle = None
    visible: str | None = None
    received: list[Received] = field(default_factory=list)
    news: int = 0
    """Grows with all that is heard of what it has."""
    gone: dict[str, int] = field(default_factory=dict)
    """Hosts that failed it as a source -> their news then. With what they have since, they may serve it."""
    keeps_gpus: bool = False
    """Another request of its campaign follows: the claim outlasts this one."""
    _began: float = 0.0
    _pulse: Pulse = field(default_factory=Pulse)

    def __post_init__(self) -> None:
        self.record = FleetHost(node_id=self.node.node_id, address=self.node.address)

    @property
    def host(self) -> str:
        return self.node.host

    @property
    def busy(self) -> bool:
        return self.step is not None

    @property
    def at_work(self) -> bool:
        """It has started and not ended, and has an agent to do what comes next."""
        return self.state.phase is HostPhase.RUNNING and self.agent is not None

    @property
    def waits_for_gpus(self) -> bool:
        return self.busy and self.claim is not None and self.visible is None

    @property
    def ended(self) -> bool:
        """It has done what there was to do for this request, well or not."""
        return self.state.phase not in (HostPhase.WAITING, HostPhase.RUNNING)

    def forget_leases(self, invocation: str) -> None:
        """Of its agent, which is dead: nobody has to wait for their time to run out."""
        self.coordinator.forget.remote(Holder(host=self.host, invocation=invocation, node_id=self.node.node_id))

    def begin(self) -> None:
        """Starts an attempt: a new agent where the last one is gone."""
        self.state = self.state.started()
        self._began = time.monotonic()
        self.received, self.gone, self.move = [], {}, None
        if self.agent is None:
            self.agent = start_agent(self.node, self.coordinator)
        self._pulse = Pulse()

    def look(self, asked: Asked) -> None:
        self.move = None
        self.step = self.agent.look.options(concurrency_group="stage").remote(asked)

    def take(self, asked: Asked, source: "Member", move: Move) -> None:
        self.move = move
        whole = source.keys(move.stages) + [key for key in source.extras.items() if key[0] not in move.stages]
        keys = list(move.keys) or whole
        call = self.agent.take.options(concurrency_group="stage")
        self.step = call.remote(asked, source.host, source.agent, keys)

    def work(self, asked: Asked, move: Move) -> None:
        """Builds or proves. The GPUs are claimed first, which is a step of its own."""
        self.move = move
        if self.needs_gpus and self.node.gpus and self.visible is None:
            self.claim = self.claim or claim_gpus(self.node)
            self.step = self.claim.visible.remote()
            return
        block = NodeBlock(
            host=self.host,
            node_id=self.node.node_id,
            address=self.node.address,
            group=self.group,
            store=self.facts.store if self.facts else None,
            received=tuple(self.received),
        )
        call = self.agent.work.options(concurrency_group="stage")
        visible = self.visible if self.needs_gpus else None
        self.step = call.remote(asked, block, self.keys(move.stages), visible)

    def keys(self, stages: tuple[StageName, ...]) -> list[Key]:
        assert self.facts is not None
        return [(stage, self.facts.stages[stage].key) for stage in stages]

    def outcome(self) -> Report | Done | str:
        """What the step came to, which has ended. Raises as `outcome_of`."""
        step, self.step = self.step, None
        found: Report | Done | str = outcome_of(step, self.node)
        return found

    def keep_asking(self) -> None:
        """While the step goes on. Raises Lost where the agent has not answered for too long."""
        self._pulse.check(self.host, self.agent)

    def end(self, phase: HostPhase, error: RayprepError | FleetError | None = None) -> None:
        """Ends the attempt. The agent stays, to send to others, unless it is lost."""
        self.state = self.state.ended(phase)
        self.move = self.step = None
        if self.visible is None or not self.keeps_gpus:
            self.let_gpus_go()
        if phase is HostPhase.LOST:
            self.let_go()
        found = error if isinstance(error, FleetError) else _as_fleet_error(error) if error else None
        took = round(time.monotonic() - self._began, 3) if self._began else 0.0
        self.record = self.record.model_copy(update={"error": found, "duration_s": took, "doing": ""})

    def cancel(self, invocation: str) -> None:
        if self.agent is not None and self.busy:
            self.agent.cancel.options(concurrency_group="ctl").remote(invocation)

    def let_gpus_go(self) -> None:
        if self.claim is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self.claim)
        self.claim = self.visible = None

    def let_go(self) -> None:
        """Ends the agent, whose guards end whatever it had started."""
        self.let_gpus_go()
        if self.agent is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self.agent)
        self.agent = None

    def dismiss(self) -> None:
        """Asks the agent and the claim to end by themselves, where no Ray is left that could end them."""
        for actor in (self.agent, self.claim):
            if actor is not None:
                actor.__ray_terminate__.remote()

    def come_back(self) -> bool:
        """Whether the host is there (again), as a living node under whatever id. Blocks for no more than a knock."""
        for node in living_nodes():
            if node.host == self.host and answers(node):
                self.node = node
                self.record = self.record.model_copy(update={"node_id": node.node_id, "address": node.address})
                return True
        return False

    def current(self) -> FleetHost:
        """Its line in the fleet's result, as it stands."""
        update = {
            "state": self.state.phase,
            "attempts": self.state.starts,
            "group": self.group,
            "store": self.facts.store if self.facts else None,
            "received": tuple(self.received) or self.record.received,
        }
        return self.record.model_copy(update=update)


def ended_steps(members: Iterable[Member]) -> frozenset[Handle]:
    """Those steps of theirs that have ended; for all at once, since Ray takes as long to be asked for one."""
    steps = [member.step for member in members if member.busy]
    return frozenset(ray.wait(steps, num_returns=len(steps), timeout=0)[0]) if steps else frozenset()


def _as_fleet_error(error: RayprepError) -> FleetError:
    kind = error.error_type or (ErrorType.INTERRUPTED if isinstance(error, Interrupted) else ErrorType.INTERNAL_ERROR)
    return FleetError(error_type=kind, message=error.line, exit_code=error.exit_code)
