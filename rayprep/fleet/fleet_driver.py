"""The driver of a fleet's run: who starts when, what each host does next, and the fleet's result.

It decides by pure rules (`model/grouping`, `model/rollout`, `model/moves`) and only acts: the work is the agents'.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rayprep.fleet.agent_pool import AgentPool, let_idle_gpus_go
from rayprep.fleet.asked import Asked, Done, Report
from rayprep.fleet.dealer import Dealer
from rayprep.fleet.fleet_record import FleetRecord
from rayprep.fleet.member import RETURN_S, Lost, Member, ended_steps
from rayprep.fleet.members import check_version, holders, join_coordinator, living_actors, living_nodes
from rayprep.fleet.reporter import GATHER_S_PER_HOST
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import Layout
from rayprep.host.process import GRACE_S
from rayprep.model.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.model.events import Phase
from rayprep.model.fleet import FleetSpec, VerifyScope, choose_nodes
from rayprep.model.fleet_result import FleetError, FleetResult, failure_of
from rayprep.model.grouping import Grouping, Standing, group_hosts
from rayprep.model.moves import Board, Move, MoveKind, next_move, with_standing
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.rollout import HostPhase, Rollout, make_rollout, next_step
from rayprep.model.stages import StageStatus
from rayprep.report.fleet_live import FleetView

POLL_S = 0.1
CANCEL_DEADLINE_S = 4 * GRACE_S + 15.0
"""From the cancel to the agents' return: the children's grace, with time to write the results."""
SAY_WAITING_S = 10.0
_DOING = {MoveKind.BUILD: "builds ", MoveKind.PART: "builds a part of ", MoveKind.PROVE: "proves"}


@dataclass(frozen=True)
class FleetRequest:
    """What the driver was asked."""

    asked: Asked
    fleet: FleetSpec
    layout: Layout
    """Of this driver; the head's is the same."""
    address: str
    view: FleetView
    interrupts: Interrupts
    more: bool = False
    """Another request of the same campaign follows."""


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
        self.members, self.record = members, record
        self.rollout = Rollout(waves=(tuple(members),), node_retries=self.fleet.node_retries)
        self.grouping: Grouping | None = None
        self.dealer = Dealer(self.asked.resolved.spec, self.fleet.deal_from_s)
        self.returning: dict[str, float] = {}
        """Lost hosts that may come back -> until when."""
        self._waiting: dict[str, tuple[float, float]] = {}
        """Hosts that wait for their GPUs -> since when, and when it was last said."""

    def go(self) -> FleetResult:
        try:
            self._look_at_all()
            self._form_groups()
            self._roll_out()
        except Interrupted as error:
            self.record.fail(error)
        except RayprepError as error:
            self.record.fail(error)
            self._cancel()
        return self.record.finish(self.rollout, self.members, interrupted=self.interrupts.asked)

    def _look_at_all(self) -> None:
        """All at once; a host that cannot do what is asked fails here, and holds up nobody."""
        for member in self.members.values():
            member.begin()
            member.look(self.asked)
        while any(member.busy for member in self.members.values()):
            self._ended(self._heard_at_first)
            self._breathe()
        for member in self.members.values():
            if member.state.phase is not HostPhase.FAILED:
                member.state = member.state.model_copy(update={"starts": 0})

    def _heard_at_first(self, member: Member, found: Report | Done | str) -> None:
        assert isinstance(found, Report)
        check_version(member.host, found.rayprep_version)
        self._reported(member, found)
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
        unfit = tuple(host for host, member in self.members.items() if member.facts is None)
        spec = self.fleet
        self.rollout = make_rollout(
            (*self.grouping.order, *unfit),
            canary=spec.canary,
            wave=spec.wave,
            max_failures=spec.max_failures,
            node_retries=spec.node_retries,
        )
        self.record.waves(self.rollout)
        if spec.require_uniform and not self.grouping.uniform:
            raise HostUnfit(
                f"the hosts are not alike: {self.grouping.odd[0]}",
                hint="mend or --exclude the odd ones, or leave --require-uniform out",
            )

    def _roll_out(self) -> None:
        while True:
            self._ended(self._heard)
            self._welcome_back()
            if self.interrupts.asked:
                self._cancel()
                raise Interrupted
            step = next_step(self.rollout, {host: member.state for host, member in self.members.items()})
            for host in step.start:
                self._start(self.members[host])
            self._move_on()
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
        ended += self._say_who_holds([member for member in busy if member.waits_for_gpus])
        if ended:
            self.record.changed()

    def _heard(self, member: Member, found: Report | Done | str) -> None:
        if isinstance(found, str):  # the claim on its GPUs
            member.visible = found
            assert member.move is not None
            self._work(member, member.move)
        elif isinstance(found, Report):
            self._reported(member, found)
        elif found.again:
            member.look(self.asked)
        elif found.source_problem:
            assert member.move is not None
            self._no_source(member, member.move.other or "")
            self.dealer.gathered(member, member.move.other or "")
            self.record.say(member.host, Phase.WARNING, message=f"not received: {found.source_problem}")
            member.move = None
        elif found.received is not None:
            member.received.append(found.received)
            if member.move and member.move.kind is MoveKind.GATHER:
                self.dealer.gathered(member, found.received.source)
                return
            self._no_source(member, found.received.source)  # what it still lacks after that, this one cannot give
            there = {stage for each in member.received for stage in each.stages}
            member.look(self.asked.rebuilding(set(self.asked.resolved.spec.selected) - there))
        elif member.move and member.move.kind is MoveKind.PART:
            self._part_ended(member, found)
        elif found.result is not None:
            member.extras = found.extras
            self._finished(member, found.result)

    def _no_source(self, member: Member, source: str) -> None:
        if source in self.members:
            member.gone[source] = self.members[source].news

    def _reported(self, member: Member, report: Report) -> None:
        member.news += 1
        member.facts, member.needs_gpus, member.extras = report.facts, report.needs_gpus, report.extras
        if report.facts is None:
            error = FleetError(
                error_type=ErrorType.UNSUPPORTED, message=report.problem, exit_code=report.problem_code or 3
            )
            self.record.say(member.host, Phase.WARNING, message=report.problem)
            member.end(HostPhase.FAILED, error)
            # Trying again changes nothing: what is asked does not fit the host.
            member.state = member.state.model_copy(update={"starts": self.rollout.node_retries + 1})

    def _part_ended(self, member: Member, done: Done) -> None:
        if self.dealer.made(member, done):
            member.record = member.record.model_copy(update={"helped": tuple(stage for stage, _ in done.made)})
        elif done.result and (failure := failure_of(done.result)):
            why = f"its part is left to the publisher: {failure.message}"
            self.record.say(member.host, Phase.WARNING, message=why)

    def _finished(self, member: Member, result: PrepResult) -> None:
        move = member.move
        member.news += 1
        member.record = self.record.host_line(member, result)
        good, withdrawn = result.good_stages, result.withdrawn_stages
        for mate in self.members.values():
            if mate.facts and member.facts and mate.facts.store == member.facts.store:
                mate.facts = with_standing(mate.facts, good, Standing.VALID)
                mate.facts = with_standing(mate.facts, withdrawn, Standing.MISSING)
        if result.status is RunStatus.OK:
            built = tuple(stage for stage in good if result.stages[stage].status is StageStatus.OK)
            if move is not None and move.kind is MoveKind.BUILD:
                member.record = member.record.model_copy(update={"built": built})
            member.end(HostPhase.VERIFIED)
        else:
            member.end(HostPhase.FAILED, failure_of(result))

    def _move_on(self) -> None:
        """Whoever has started and is at nothing gets its next step."""
        boards: dict[str | None, Board] = {}
        for member in self.members.values():
            if member.state.phase is not HostPhase.RUNNING or member.busy or member.facts is None:
                continue
            if member.host in self.returning or member.agent is None:
                continue
            if member.group not in boards:
                boards[member.group] = self._board(member.group)
            self._move(member, boards[member.group])

    def _board(self, group: str | None) -> Board:
        mates = {each.host: each.facts for each in self.members.values() if each.group == group and each.facts}
        busy = {each.host: each.move for each in self.members.values() if each.busy and each.move}
        lost = frozenset(host for host, each in self.members.items() if each.agent is None)
        running = frozenset(host for host, each in self.members.items() if each.state.phase is HostPhase.RUNNING)
        return Board(mates, busy, lost, running - lost)

    def _move(self, member: Member, board: Board) -> None:
        move = self.dealer.move(member, self.members)
        if move is None:
            failed = {host for host, then in member.gone.items() if self.members[host].news == then}
            move = self.dealer.deal(next_move(member.host, board, failed), member, self.members)
        board.begin(member.host, move)
        self._carry_out(member, move)

    def _carry_out(self, member: Member, move: Move) -> None:
        if move.kind is MoveKind.WAIT:
            member.record = member.record.model_copy(update={"doing": f"waits for {move.other}"})
        elif move.kind in (MoveKind.RECEIVE, MoveKind.GATHER):
            assert move.other is not None
            member.record = member.record.model_copy(update={"doing": f"receives from {move.other}"})
            member.take(self.asked, self.members[move.other], move)
        else:
            self._work(member, move)

    def _work(self, member: Member, move: Move) -> None:
        doing = _DOING[move.kind] + ", ".join(move.stages)
        waits = member.needs_gpus and member.node.gpus and member.visible is None
        member.record = member.record.model_copy(update={"doing": "waits for its GPUs" if waits else doing})
        asked = self.asked.rebuilding(move.stages)
        scope = self.fleet.verify
        canary = self.rollout.waves[0] if self.rollout.waves else ()
        if scope is VerifyScope.NONE or (scope is VerifyScope.CANARY and member.host not in canary):
            asked = asked.without_proof()
        if move.kind is MoveKind.PART:
            asked = asked.only(move.part)
        member.work(asked, move)

    def _say_who_holds(self, waiting: Sequence[Member]) -> list[Member]:
        """Of claims that Ray does not place, says whose the GPUs are; returns the hosts that have waited in vain."""
        now = time.monotonic()
        self._waiting = {member.host: self._waiting.get(member.host, (now, now)) for member in waiting}
        due = [member for member in waiting if now - self._waiting[member.host][1] >= SAY_WAITING_S]
        living = living_actors() if due else {}
        if due:
            let_idle_gpus_go(self.members)
        for member in due:
            since, self._waiting[member.host] = self._waiting[member.host][0], (self._waiting[member.host][0], now)
            holder, waited = holders(living.get(member.node.node_id, [])), now - since
            fields = {"held_for_s": round(waited, 1), "holder": holder, "message": "GPUs", "slug": "the GPUs"}
            self.record.say(member.host, Phase.WAIT_LOCK, **fields)
            if waited > self.asked.resolved.spec.timeout_s:
                why = f"the GPUs of {member.host} are held by {holder}"
                member.end(HostPhase.FAILED, HostUnfit(why, hint="end that job, or --exclude the host"))
        return [member for member in due if not member.busy]

    def _cancel(self) -> None:
        """Tells all hosts, and waits for them to write their results."""
        deadline = time.monotonic() + CANCEL_DEADLINE_S
        for member in self.members.values():
            with contextlib.suppress(RayprepError):
                member.cancel(self.asked.invocation)
        while any(member.busy for member in self.members.values()) and time.monotonic() < deadline:
            ready = ended_steps(self.members.values())
            for member in self.members.values():
                if member.step in ready:
                    self._cancelled(member)
            self.record.drain()
            time.sleep(POLL_S)
        for member in self.members.values():
            if member.state.phase is HostPhase.RUNNING:
                member.end(HostPhase.FAILED, Interrupted())

    def _cancelled(self, member: Member) -> None:
        try:
            found = member.outcome()
        except RayprepError as error:
            member.end(HostPhase.FAILED, error)
            return
        if isinstance(found, Done) and found.result is not None:
            member.record = self.record.host_line(member, found.result)
            member.end(HostPhase.FAILED, failure_of(found.result) or Interrupted())

    def _breathe(self) -> None:
        self.record.drain()
        self.record.show(self.members)
        time.sleep(POLL_S)
        if self.interrupts.asked and self.grouping is None:
            self._cancel()
            raise Interrupted
