"""The deals of a fleet's run: one for each group that has more to build than one host should build alone."""

from collections.abc import Callable, Iterable, Mapping

from rayprep.fleet.agent.messages import Done
from rayprep.fleet.remote_host import Member
from rayprep.model.fleet.moves import Move, MoveKind
from rayprep.model.fleet.parts import Deal, deal_out, dealt_move
from rayprep.model.result import RunStatus
from rayprep.model.spec import PrepSpec, StageOp


class Dealer:
    """Keeps them, and says what a host does next by them."""

    def __init__(self, spec: PrepSpec, from_s: float) -> None:
        # What is built anew lies there already, so a part of it could not be told from what it replaces.
        self._stages = [stage for stage in spec.selected if spec.op(stage) is not StageOp.REBUILD]
        self._from_s = from_s
        self._deals: dict[str, Deal] = {}
        self._dealt: set[str] = set()
        """Groups that had their deal. There is one in a run: what it has not brought, the publisher builds."""

    def move(self, member: Member, members: Mapping[str, Member]) -> Move | None:
        """By the deal of its group; None where there is none, or it is over."""
        if member.group not in self._deals:
            return None
        deal = self._deals[member.group]
        alive = {host for host in (deal.publisher, *deal.parts) if members[host].at_work}
        move = dealt_move(member.host, deal, alive)
        if move is None:
            del self._deals[member.group]
        return move

    def deal(self, move: Move, member: Member, members: Mapping[str, Member]) -> Move:
        """`move`, or where it is a build that others can help with, the host's own part of it."""
        if move.kind is not MoveKind.BUILD or member.group is None or member.group in self._dealt:
            return move
        self._dealt.add(member.group)
        facts = [each.facts for each in _idle(member, members.values()) if each.facts]
        deal = deal_out(facts, self._stages, self._from_s)
        if deal is None:
            return move
        self._deals[member.group] = deal
        return self.move(member, members) or move

    def made(self, member: Member, done: Done) -> bool:
        """A host has ended its part. False where it could not build it: then the publisher will."""
        good = done.result is not None and done.result.status is RunStatus.OK
        self._change(member, lambda deal: deal.with_made(member.host, done.made if good else ()))
        return good

    def gathered(self, member: Member, source: str) -> None:
        """The part of `source` has come to `member`, the publisher, or cannot."""
        self._change(member, lambda deal: deal.with_gathered(source))

    def _change(self, member: Member, how: Callable[[Deal], Deal]) -> None:
        """Of the deal of its group, unless that is over."""
        if member.group in self._deals:
            self._deals[member.group] = how(self._deals[member.group])


def _idle(first: Member, members: Iterable[Member]) -> list[Member]:
    mates = [each for each in members if each.group == first.group and each is not first]
    return [first, *(each for each in mates if each.at_work and not each.busy)]
