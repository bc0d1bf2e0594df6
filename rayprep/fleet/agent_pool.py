"""The agents of a campaign's hosts, and their claims on GPUs: kept from one request to the next."""

from collections.abc import Mapping, Sequence

from rayprep.fleet.handles import Handle
from rayprep.fleet.remote_host import Member
from rayprep.model.fleet.spec import NodeInfo


class AgentPool:
    """A context manager; leaving it ends them all. For as long as this process is attached to one cluster."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        """As the last request that had the host left it."""

    def with_gone(self, living: Sequence[NodeInfo]) -> tuple[NodeInfo, ...]:
        """With the hosts that an earlier request had and that do not live now: they are lost, and not left out."""
        names = {node.host for node in living}
        gone = (member.node for host, member in self._members.items() if host not in names)
        return tuple(sorted((*living, *gone), key=lambda node: (node.host, node.node_id)))

    def members(self, nodes: Sequence[NodeInfo], coordinator: Handle, *, more: bool) -> dict[str, Member]:
        """A fresh start for each host, with the agent and the claim that it has.

        Args:
            more: another request follows, for which they are kept.
        """
        found = {node.host: self._member(node, coordinator) for node in nodes}
        for member in found.values():
            member.keeps_gpus = more
        self._members |= found
        return found

    def _member(self, node: NodeInfo, coordinator: Handle) -> Member:
        last = self._members.get(node.host)
        if last is None:
            return Member(node, coordinator)
        if last.busy or last.node.node_id != node.node_id or last.coordinator != coordinator:
            last.let_go()
        return Member(node, coordinator, agent=last.agent, claim=last.claim, visible=last.visible)

    def __enter__(self) -> "AgentPool":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members.values():
            member.let_go()


def let_idle_gpus_go(members: Mapping[str, Member]) -> None:
    """For another driver: two that both waited, each for what the other keeps, would wait for ever."""
    for member in members.values():
        if member.visible is not None and not member.busy and member.ended:
            member.let_gpus_go()
