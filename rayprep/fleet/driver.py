"""The driver of one run: creates the agent and the coordinator, shows progress, and always leaves a result."""

import contextlib
import signal
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from rayprep.fleet.agent import CONCURRENCY_GROUPS, Agent
from rayprep.fleet.coordinator import Coordinator
from rayprep.host.environment import RUN_MARK
from rayprep.host.process import GRACE_S, end_processes, marked_processes
from rayprep.model.errors import ErrorType, Interrupted, RayprepError
from rayprep.model.events import Event, Phase, event
from rayprep.model.result import PrepResult
from rayprep.node import NodeRequest, Survey
from rayprep.node.closing import close_result, lost
from rayprep.report.live import View
from rayprep.report.session_log import SessionLog

POLL_S = 0.25
CANCEL_DEADLINE_S = 2 * GRACE_S + 10.0
"""From the cancel to the agent's return: the children's grace, with time to write the result."""


def drive(request: NodeRequest, survey: Survey, view: View, attached: AbstractContextManager[None]) -> PrepResult:
    """Carries out a request through an agent and a coordinator, while `attached` to a local or a joined Ray.

    Raises:
        RayprepError: Ray cannot be started or joined, or the agent could not begin; the result is still to be closed.
    """
    with Interrupts() as interrupts:
        try:
            with attached, view:
                interrupts.install()  # Ray puts its own handler in place when it starts
                return _Drive(request, survey, view, interrupts).go()
        except (KeyboardInterrupt, SystemExit):  # before the agent lived; the latter is how Ray takes SIGTERM
            return close_result(request, survey, Interrupted())


class Interrupts:
    """Ctrl-C and SIGTERM as a flag once installed; before that they raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def __enter__(self) -> "Interrupts":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


class _Drive:
    """One agent and one coordinator, from creation to result."""

    def __init__(self, request: NodeRequest, survey: Survey, view: View, interrupts: Interrupts) -> None:
        self.request, self.survey, self.view, self.interrupts = request, survey, view, interrupts
        self.seen = 0
        self.coordinator_lives = True
        self.cancel_until: float | None = None
        self.coordinator, self.agent = self._create()

    def _create(self) -> tuple[Any, Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        pinned = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        gpus = next((node["Resources"].get("GPU", 0) for node in nodes if node["NodeID"] == here), 0)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": pinned}
        make: Any = ray.remote
        coordinator = make(**options)(Coordinator).remote(self.request.layout, self.request.run_id)
        agent_class = make(**options, num_gpus=gpus, concurrency_groups=CONCURRENCY_GROUPS)(Agent)
        return coordinator, agent_class.remote(self.request, coordinator)

    def go(self) -> PrepResult:
        import ray

        answer = self.agent.ensure.options(concurrency_group="stage").remote()
        while not ray.wait([answer], timeout=POLL_S)[0]:
            self._drain()
            self.view.refresh()
            self._maybe_cancel()
            if self.cancel_until and time.monotonic() > self.cancel_until:
                ray.kill(self.agent)
                return self._close(Interrupted())
        try:
            result: PrepResult = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            self._drain()
            raise _cause(error) from None
        except ray.exceptions.RayError:
            return self._close(Interrupted() if self.interrupts.asked else lost())
        self._drain()
        return result

    def _maybe_cancel(self) -> None:
        if self.interrupts.asked and self.cancel_until is None:
            self.cancel_until = time.monotonic() + CANCEL_DEADLINE_S
            self.agent.cancel.options(concurrency_group="ctl").remote()

    def _drain(self) -> None:
        import ray

        if not self.coordinator_lives:
            return
        try:
            events: list[Event] = ray.get(self.coordinator.events_since.remote(self.seen), timeout=10)
        except ray.exceptions.GetTimeoutError:
            return
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError:
            self.coordinator_lives = False
            message = "the coordinator died: no more progress is shown or logged; the work goes on"
            self.view.show(event("ensure", Phase.WARNING, message=message))
            return
        for each in events:
            self.view.show(each)
        self.seen += len(events)

    def _close(self, error: RayprepError) -> PrepResult:
        """Writes the result in the dead agent's place, and says so in the log that the coordinator still keeps."""
        self._drain()
        _leave_nothing(self.request.run_id)
        result = close_result(self.request, self.survey, error)
        said = event(
            "ensure", Phase.END, status=result.status.value, error_type=error.error_type, message=error.message
        )
        with contextlib.suppress(OSError):
            log = SessionLog(self.request.layout.session_log(self.request.run_id))
            log.record(said)
            log.close()
        self.view.show(said)
        return result


def _cause(error: Exception) -> RayprepError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayprepError):
        return cause
    return RayprepError(f"the agent failed: {cause or error}", error_type=ErrorType.NODE_LOST)


def _leave_nothing(run_id: str) -> None:
    """Waits for the guards of a dead agent to end their trees; ends by hand what outlived them."""
    deadline = time.monotonic() + GRACE_S + 5.0
    while (left := marked_processes(RUN_MARK, run_id)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    end_processes(left)
