"""The driver of a fleet's run: who is alike, who starts when, who is lost and returns, and the fleet's result.

It decides by pure rules (`model/fleet/grouping`, `model/fleet/rollout`) and only acts: the work is the agents'.
"""

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.fleet.actors import check_version, join_coordinator, living_nodes
from rayprep.fleet.agent.messages import Asked, Done, Report
from rayprep.fleet.agent_pool import AgentPool
from rayprep.fleet.event_batcher import GATHER_S_PER_HOST
from rayprep.fleet.gpu_waits import GpuWaits
from rayprep.fleet.messages import Orders
from rayprep.fleet.remote_calls import Lost
from rayprep.fleet.remote_host import RETURN_S, Member, ended_steps
from rayprep.fleet.result_writer import FleetRecord
from rayprep.fleet.runtime.watch import RayGone, RayWatch
from rayprep.fleet.steps import HostSteps
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import Layout
from rayprep.host.process import GRACE_S
from rayprep.model.events import Phase
from rayprep.model.fleet.grouping import Grouping, group_hosts
from rayprep.model.fleet.result import FleetError, FleetResult, failure_of
from rayprep.model.fleet.rollout import HostPhase, Rollout, make_rollout, next_step
from rayprep.model.fleet.spec import FleetSpec, choose_nodes
from rayprep.model.signature import answer_kind
from rayprep.report.fleet_view import FleetView

POLL_S = 0.1
CANCEL_DEADLINE_S = 4 * GRACE_S + 15.0
"""From the cancel to the agents' return: the children's grace, with time to write the results."""
GONE_DEADLINE_S = GRACE_S + 2.0
"""The same where Ray is gone, which ends this process before long."""


@dataclass(frozen=True)
class FleetRequest:
    """What the driver was asked."""

    asked: Asked
    fleet: FleetSpec
    layout: Layout
    """Of this driver; the head's is the same."""
    address: str
    view: FleetView
    interrupts: Interrupts | Orders
    more: bool = False
    """Another request of the same campaign follows."""
    watch: RayWatch | None = None


def drive_fleet(request: FleetRequest, pool: AgentPool) -> FleetResult:
    """Carries it out on the cluster that this process has joined, and returns the result that is written.

    Raises:
        BadRequest, HostUnfit: before any host does anything.
    """
    living = living_nodes()
    chosen = choose_nodes(pool.with_gone(living), request.fleet, request.asked.resolved.spec.device)
    asked = request.asked.model_copy(update={"gather_s": GATHER_S_PER_HOST * len(chosen)})
    request = replace(request, asked=asked)
    state = request.layout.telemetry / "coordinator" / "leases.jsonl"
    coordinator = join_coordinator(living, state)
    members = pool.members(chosen, coordinator, more=request.more)
    record = FleetRecord(request.asked, request.fleet, request.address, request.layout, coordinator, request.view)
    drive = _Drive(request, members, record)
    try:
        return drive.go()
    finally:
        coordinator.close_run.remote(request.asked.run_id)


class _Drive:
    def __init__(self, request: FleetRequest, members: dict[str, Member], record: FleetRecord) -> None:
        self.asked, self.fleet, self.interrupts = request.asked, request.fleet, request.interrupts
        self.watch = request.watch
        self.members, self.record = members, record
        self.rollout = Rollout(waves=(tuple(members),), node_retries=self.fleet.node_retries)
        self.grouping: Grouping | None = None
        self.steps = HostSteps(self.asked, self.fleet, members, record)
        self.gpu_waits = GpuWaits(members, record, self.asked.resolved.spec.timeout_s)
        self.returning: dict[str, float] = {}
        """Lost hosts that may come back -> until when."""

    def go(self) -> FleetResult:
        try:
            self._look(self.members.values(), self.asked)
            self._ask_sglang()
            self._form_groups()
            self._roll_out()
        except Interrupted as error:
            self.record.fail(error)
        except RayprepError as error:
            self.record.fail(error)
            self._cancel(error if isinstance(error, RayGone) else None)
        return self.record.finish(self.rollout, self.members, interrupted=self.interrupts.asked)

    def _look(self, members: Collection[Member], asked: Asked) -> None:
        """All at once; a host that cannot do what is asked fails here, and holds up nobody."""
        for member in members:
            member.begin()
            member.look(asked)
        while any(member.busy for member in members):
            self._ended(self._heard_at_first)
            self._breathe()
        for member in members:
            if member.state.phase is not HostPhase.FAILED:
                member.state = member.state.model_copy(update={"starts": 0})

    def _ask_sglang(self) -> None:
        """One host of each kind asks its SGLang what a server needs, and all others of the kind plan by the answer.

        Where it is lost meanwhile, the next one asks.
        """
        kinds = {host: answer_kind(member.facts.signature) for host, member in self.members.items() if member.facts}
        answers = {kinds[host]: answer for host in kinds if (answer := self.members[host].answer)}
        others = [self.members[host] for host in kinds if self.members[host].may_ask]
        while askers := {
            kinds[member.host]: member for member in reversed(others) if kinds[member.host] not in answers
        }:
            self._look(askers.values(), self.asked.asking())
            answers |= {kind: member.answer for kind, member in askers.items() if member.answer}
            others = [member for member in others if member not in askers.values()]
        self.asked = self.steps.asked = self.asked.answered(answers)
        self._look(others, self.asked)

    def _heard_at_first(self, member: Member, found: Report | Done | str) -> None:
        assert isinstance(found, Report)
        check_version(member.host, found.rayprep_version)
        self.steps.reported(member, found)
        if member.facts is not None:
            member.end(HostPhase.WAITING)
        member.record = member.record.model_copy(update={"duration_s": 0.0})

    def _form_groups(self) -> None:
        facts = [member.facts for member in self.members.values() if member.facts]
        # A stage that nobody needs binds nobody.
        needed = {stage for each in facts for stage in each.stages}
        selected = [stage for stage in self.asked.resolved.spec.selected if stage in needed]
        self.grouping = group_hosts(facts, selected)
        for group in self.grouping.groups:
            for host in group.hosts:
                self.members[host].group = group.name
        self.record.groups(self.grouping)
        self._form_waves(self.grouping)
        if self.fleet.require_uniform and not self.grouping.uniform:
            raise HostUnfit(
                f"the hosts are not alike: {self.grouping.odd[0]}",
                hint="mend or --exclude the odd ones, or leave --require-uniform out",
            )

    def _form_waves(self, grouping: Grouping) -> None:
        unfit = tuple(host for host, member in self.members.items() if member.facts is None)
        spec = self.fleet
        self.rollout = make_rollout(
            (*grouping.order, *unfit),
            canary=spec.canary,
            wave=spec.wave,
            max_failures=spec.max_failures,
            node_retries=spec.node_retries,
        )
        self.steps.canary = self.rollout.waves[0] if self.rollout.waves else ()
        self.record.waves(self.rollout)

    def _roll_out(self) -> None:
        while True:
            self._ended(self.steps.heard)
            self._welcome_back()
            if self.interrupts.asked:
                self._cancel()
                raise Interrupted
            step = next_step(self.rollout, {host: member.state for host, member in self.members.items()})
            for host in step.start:
                self._start(self.members[host])
            self.steps.move_on(self.returning)
            if step.ended and not self.returning:
                self.record.stopped(step.stopped)
                return
            self._breathe()

    def _start(self, member: Member) -> None:
        """Begins an attempt. One after the first looks again, for something may have changed."""
        again = member.facts is None or member.state.starts > 0
        if member.state.phase is HostPhase.LOST:
            if member.host not in self.returning:
                self.returning[member.host] = time.monotonic() + RETURN_S
            member.state = member.state.started()
            return
        member.begin()
        if again:
            member.look(self.asked)

    def _welcome_back(self) -> None:
        for host, until in list(self.returning.items()):
            member = self.members[host]
            if member.come_back():
                del self.returning[host]
                member.state = member.state.model_copy(update={"starts": member.state.starts - 1})
                member.begin()
                member.look(self.asked)
            elif time.monotonic() > until:
                del self.returning[host]
                member.state = member.state.ended(HostPhase.LOST)

    def _ended(self, heard: Callable[[Member, Report | Done | str], None]) -> None:
        """Hands on the steps that have ended, and fails the hosts whose step did."""
        busy, ended = [member for member in self.members.values() if member.busy], []
        ready = ended_steps(busy)
        for member in busy:
            try:
                if member.step not in ready:
                    member.keep_asking()
                    continue
                heard(member, member.outcome())
            except Lost as error:
                self.record.say(member.host, Phase.WARNING, message=error.message)
                if error.dead:
                    member.forget_leases(self.asked.invocation)
                member.end(HostPhase.LOST, error)
            except RayprepError as error:
                if isinstance(error, HostUnfit) and error.error_type is ErrorType.RAY_UNAVAILABLE:
                    raise
                self.record.say(member.host, Phase.WARNING, message=error.line)
                member.end(HostPhase.FAILED, error)
            ended.append(member)
        if ended + self.gpu_waits.look():
            self.record.changed()

    def _cancel(self, gone: RayGone | None = None) -> None:
        """Tells all hosts, and waits for them to write their results. With a Ray that is gone they are lost."""
        deadline = time.monotonic() + (GONE_DEADLINE_S if gone else CANCEL_DEADLINE_S)
        for member in self.members.values():
            with contextlib.suppress(RayprepError):
                member.cancel(self.asked.invocation)
        while any(member.busy for member in self.members.values()) and time.monotonic() < deadline:
            ready = ended_steps(self.members.values())
            for member in self.members.values():
                if member.step in ready:
                    self._cancelled(member, gone)
            self.record.drain()
            self.record.show(self.members)
            time.sleep(POLL_S)
        for member in self.members.values():
            if member.state.phase is HostPhase.RUNNING:
                self._end(member, gone, Interrupted())

    def _cancelled(self, member: Member, gone: RayGone | None) -> None:
        try:
            found = member.outcome()
        except RayprepError as error:
            self._end(member, gone, error)
            return
        if isinstance(found, Done) and found.result is not None:
            member.record = self.record.host_line(member, found.result)
            self._end(member, gone, failure_of(found.result) or Interrupted())

    def _end(self, member: Member, gone: RayGone | None, error: RayprepError | FleetError) -> None:
        if gone:
            member.dismiss()
        member.end(HostPhase.LOST if gone else HostPhase.FAILED, gone or error)

    def _breathe(self) -> None:
        """Raises RayGone, and Interrupted while the hosts are not grouped yet."""
        if self.watch is not None:
            self.watch.check()
        self.record.drain()
        self.record.show(self.members)
        time.sleep(POLL_S)
        if self.interrupts.asked and self.grouping is None:
            self._cancel()
            raise Interrupted
