"""What each host of a fleet's run does next, and what its last step has come to."""

from collections.abc import Collection, Mapping

from rayprep.base.errors import ErrorType
from rayprep.fleet.agent.messages import Asked, Done, Report
from rayprep.fleet.parts import Dealer
from rayprep.fleet.remote_host import Member
from rayprep.fleet.result_writer import FleetRecord
from rayprep.model.events import Phase
from rayprep.model.fleet.grouping import Standing
from rayprep.model.fleet.moves import Board, Move, MoveKind, next_move, with_standing
from rayprep.model.fleet.result import FleetError, end_of, failure_of
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.fleet.spec import FleetSpec, VerifyScope
from rayprep.model.result import PrepResult, Received, RunStatus
from rayprep.model.stages import StageStatus

_DOING = {MoveKind.BUILD: "builds ", MoveKind.PART: "builds a part of ", MoveKind.PROVE: "proves"}


class HostSteps:
    """Decides by pure rules (`model/fleet/moves`, `model/fleet/parts`) and begins calls that the driver waits for."""

    def __init__(self, asked: Asked, fleet: FleetSpec, members: Mapping[str, Member], record: FleetRecord) -> None:
        self.asked, self._fleet, self._members, self._record = asked, fleet, members, record
        self._dealer = Dealer(asked.resolved.spec, fleet.deal_from_s)
        self.canary: Collection[str] = ()
        """The hosts of the first wave."""

    def heard(self, member: Member, found: Report | Done | str) -> None:
        """The step of `member` has come to `found`."""
        if isinstance(found, str):  # the claim on its GPUs
            member.visible = found
            assert member.move is not None
            self._work(member, member.move)
        elif isinstance(found, Report):
            self.reported(member, found)
        elif found.again:
            member.look(self.asked)
        elif found.source_problem:
            self._source_failed(member, found.source_problem)
        elif found.received is not None:
            self._received(member, found.received)
        elif member.move and member.move.kind is MoveKind.PART:
            self._part_ended(member, found)
        elif found.result is not None:
            member.extras = found.extras
            self._finished(member, found.result)

    def reported(self, member: Member, report: Report) -> None:
        """It has looked at itself."""
        member.news += 1
        member.facts, member.needs_gpus, member.extras = report.facts, report.needs_gpus, report.extras
        member.answer, member.may_ask = report.answer, report.may_ask
        if report.facts is None:
            error = FleetError(
                error_type=ErrorType.UNSUPPORTED, message=report.problem, exit_code=report.problem_code or 3
            )
            self._record.say(member.host, Phase.END, status="error", message=report.problem)
            member.end(HostPhase.FAILED, error)
            # Trying again changes nothing: what is asked does not fit the host.
            member.state = member.state.model_copy(update={"starts": self._fleet.node_retries + 1})

    def _source_failed(self, member: Member, problem: str) -> None:
        assert member.move is not None
        self._no_source(member, member.move.other or "")
        self._dealer.gathered(member, member.move.other or "")
        self._record.say(member.host, Phase.WARNING, message=f"not received: {problem}")
        member.move = None

    def _received(self, member: Member, received: Received) -> None:
        member.received.append(received)
        if member.move and member.move.kind is MoveKind.GATHER:
            self._dealer.gathered(member, received.source)
            return
        self._no_source(member, received.source)  # what it still lacks after that, this one cannot give
        there = {stage for each in member.received for stage in each.stages}
        member.look(self.asked.rebuilding(set(self.asked.resolved.spec.selected) - there))

    def _no_source(self, member: Member, source: str) -> None:
        if source in self._members:
            member.gone[source] = self._members[source].news

    def _part_ended(self, member: Member, done: Done) -> None:
        stages = done.result.stages if done.result else {}
        kernels = {stage: len(each.artifacts.built) for stage, each in stages.items() if each.artifacts}
        member.record = member.record.model_copy(update={"helped_kernels": kernels})
        if self._dealer.made(member, done):
            member.record = member.record.model_copy(update={"helped": tuple(stage for stage, _ in done.made)})
        elif done.result and (failure := failure_of(done.result)):
            why = f"its part is left to the publisher: {failure.message}"
            self._record.say(member.host, Phase.WARNING, message=why)

    def _finished(self, member: Member, result: PrepResult) -> None:
        move = member.move
        member.news += 1
        member.record = self._record.host_line(member, result)
        good, withdrawn = result.good_stages, result.withdrawn_stages
        for mate in self._members.values():
            if mate.facts and member.facts and mate.facts.store == member.facts.store:
                mate.facts = with_standing(mate.facts, good, Standing.VALID)
                mate.facts = with_standing(mate.facts, withdrawn, Standing.MISSING)
        if result.status is not RunStatus.OK:
            member.end(HostPhase.FAILED, failure_of(result))
            return
        if move is not None and move.kind is MoveKind.BUILD:
            built = tuple(stage for stage in good if result.stages[stage].status is StageStatus.OK)
            member.record = member.record.model_copy(update={"built": built})
        member.end(end_of(result))

    def move_on(self, returning: Collection[str]) -> None:
        """Whoever has started and is at nothing gets its next step.

        Args:
            returning: hosts that were lost, and may come back.
        """
        boards: dict[str | None, Board] = {}
        for member in self._members.values():
            if not member.at_work or member.busy or member.facts is None or member.host in returning:
                continue
            if member.group not in boards:
                boards[member.group] = self._board(member.group)
            self._move(member, boards[member.group])

    def _board(self, group: str | None) -> Board:
        mates = {each.host: each.facts for each in self._members.values() if each.group == group and each.facts}
        busy = {each.host: each.move for each in self._members.values() if each.busy and each.move}
        lost = frozenset(host for host, each in self._members.items() if each.agent is None)
        running = frozenset(host for host, each in self._members.items() if each.at_work)
        return Board(mates, busy, lost, running)

    def _move(self, member: Member, board: Board) -> None:
        move = self._dealer.move(member, self._members)
        if move is None:
            failed = {host for host, then in member.gone.items() if self._members[host].news == then}
            move = self._dealer.deal(next_move(member.host, board, failed), member, self._members)
        board.begin(member.host, move)
        self._carry_out(member, move)

    def _carry_out(self, member: Member, move: Move) -> None:
        if move.kind is MoveKind.WAIT:
            member.record = member.record.model_copy(update={"doing": f"waits for {move.other}"})
        elif move.kind in (MoveKind.RECEIVE, MoveKind.GATHER):
            assert move.other is not None
            member.record = member.record.model_copy(update={"doing": f"receives from {move.other}"})
            member.take(self.asked, self._members[move.other], move)
        else:
            self._work(member, move)

    def _work(self, member: Member, move: Move) -> None:
        doing = _DOING[move.kind] + ", ".join(move.stages)
        waits = member.needs_gpus and member.node.gpus and member.visible is None
        member.record = member.record.model_copy(update={"doing": "waits for its GPUs" if waits else doing})
        asked = self.asked.rebuilding(move.stages)
        scope = self._fleet.verify
        if scope is VerifyScope.NONE or (scope is VerifyScope.CANARY and member.host not in self.canary):
            asked = asked.without_proof()
        if move.kind is MoveKind.PART:
            asked = asked.only(move.part)
        member.work(asked, move)
