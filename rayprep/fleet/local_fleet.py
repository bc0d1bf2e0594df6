"""The driver of this host's runs: creates the agent and the coordinator, shows progress, brings back the results."""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.fleet.coordinator.coordinator import Coordinator
from rayprep.fleet.handles import Handle
from rayprep.fleet.local_agent import CONCURRENCY_GROUPS, Agent
from rayprep.fleet.messages import HostJob, Orders, Wire
from rayprep.fleet.runtime.watch import RayWatch
from rayprep.host.process import GRACE_S
from rayprep.model.events import Event, Phase, event
from rayprep.model.result import PrepResult
from rayprep.node.lost_run import lost

POLL_S = 0.25
PLACEMENT_DEADLINE_S = 60.0
CANCEL_DEADLINE_S = 4 * GRACE_S + 10.0
"""From the cancel to the agent's return: the children's grace, with time to write the result."""


@dataclass(frozen=True)
class _Actors:
    """Two actors on this host."""

    coordinator: Handle
    agent: Handle
    gpus: float
    """All of the host's, which the agent holds, or 0."""

    def end(self) -> None:
        for actor in (self.agent, self.coordinator):
            ray.kill(actor)


class HostDriver:
    """Carries out one request after another on this host, while this process is attached to a local or a joined Ray.

    Its actors stay from one to the next, and with them the claim on the GPUs.
    """

    def __init__(self, orders: Orders, watch: RayWatch) -> None:
        self._orders, self._watch = orders, watch
        self._actors: _Actors | None = None

    def drive(self, job: HostJob, wire: Wire) -> PrepResult:
        """Raises RayprepError where the agent or Ray died, or the agent could not go on.

        The result is then still to be closed, what is left of the agent to be ended, and this driver of no more use.
        """
        drive = _Drive(job, wire, self._orders, self._watch, self._actors_for(job.uses_gpus))
        result = drive.go()
        if not drive.coordinator_lives:
            self._end_actors()
        return result

    def _actors_for(self, uses_gpus: bool) -> _Actors:
        here = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        gpus = next((node["Resources"].get("GPU", 0) for node in nodes if node["NodeID"] == here), 0)
        gpus = gpus if uses_gpus else 0
        if self._actors is not None and self._actors.gpus != gpus:
            self._end_actors()
        if self._actors is None:
            self._actors = _create(here, gpus)
        return self._actors

    def _end_actors(self) -> None:
        if self._actors is not None:
            self._actors.end()
            self._actors = None


def _create(here: str, gpus: float) -> _Actors:
    pinned = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": pinned}
    make: Any = ray.remote
    coordinator = make(**options)(Coordinator).remote()
    agent_class = make(**options, num_gpus=gpus, concurrency_groups=CONCURRENCY_GROUPS)(Agent)
    return _Actors(coordinator, agent_class.remote(coordinator), gpus)


class _Drive:
    """One request, from the agent's first sign to the result."""

    def __init__(self, job: HostJob, wire: Wire, orders: Orders, watch: RayWatch, actors: _Actors) -> None:
        self.request, self.wire, self.orders, self.watch = job.request, wire, orders, watch
        self.seen = 0
        self.coordinator_lives = True
        self.cancel_until: float | None = None
        self.coordinator, self.agent = actors.coordinator, actors.agent
        self.opened = self.coordinator.open_run.remote(self.request.layout, self.request.run_id)

    def go(self) -> PrepResult:
        self._await_agent()
        # What the agent says is dropped until then; a coordinator that does not come costs the log, not the work.
        self._wait_for(self.opened)
        answer = self.agent.ensure.options(concurrency_group="stage").remote(self.request)
        while not ray.wait([answer], timeout=POLL_S)[0]:
            self._drain()
            self._breathe()
            self._maybe_cancel()
            if self.cancel_until and time.monotonic() > self.cancel_until:
                ray.kill(self.agent)
                raise self._lost(Interrupted())
        try:
            result: PrepResult = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            self._drain()
            raise _cause(error) from None
        except ray.exceptions.RayError:
            self.watch.check()  # where more than the agent died
            raise self._lost(Interrupted() if self.orders.asked else lost()) from None
        self._drain()
        self.coordinator.close_run.remote(self.request.run_id)
        return result

    def _await_agent(self) -> None:
        """Raises HostUnfit when Ray does not place the agent, most likely since its GPUs are somebody else's."""
        ping = self.agent.ping.options(concurrency_group="ctl").remote()
        if not self._wait_for(ping):
            raise HostUnfit(
                f"Ray has not placed the agent on this host within {PLACEMENT_DEADLINE_S:.0f} s",
                hint="another job holds this host's GPUs: see `ray status`",
                error_type=ErrorType.RAY_UNAVAILABLE,
            )
        try:
            self.wire.agent_pid = ray.get(ping)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            raise RayprepError(f"the agent did not start: {error}", error_type=ErrorType.NODE_LOST) from None

    def _wait_for(self, call: Handle) -> bool:
        """Whether it has ended in time. Raises Interrupted, and HostUnfit where Ray is gone."""
        deadline = time.monotonic() + PLACEMENT_DEADLINE_S
        while not ray.wait([call], timeout=POLL_S)[0]:
            self._breathe()
            if self.orders.asked:
                raise Interrupted
            if time.monotonic() > deadline:
                return False
        return True

    def _breathe(self) -> None:
        self.wire.refresh()
        self.watch.check()

    def _maybe_cancel(self) -> None:
        if self.orders.asked and self.cancel_until is None:
            self.cancel_until = time.monotonic() + CANCEL_DEADLINE_S
            self.agent.cancel.options(concurrency_group="ctl").remote()

    def _drain(self) -> None:
        if not self.coordinator_lives:
            return
        try:
            asked = self.coordinator.events_since.remote(self.request.run_id, self.seen)
            events: list[Event] = ray.get(asked, timeout=10)
        except ray.exceptions.GetTimeoutError:
            return
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError:
            self.coordinator_lives = False
            message = "the coordinator died: no more progress is shown or logged; the work goes on"
            self.wire.show(event("ensure", Phase.WARNING, message=message))
            return
        for each in events:
            self.wire.show(each)
        self.seen += len(events)

    def _lost(self, error: RayprepError) -> RayprepError:
        """Shows what was still said."""
        self._drain()
        return error


def _cause(error: Exception) -> RayprepError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayprepError):
        return cause
    return RayprepError(f"the agent failed: {cause or error}", error_type=ErrorType.NODE_LOST)
