"""An agent that sends damaged files. A module of its own: other agents import it, in a thread."""

from collections.abc import Iterator, Sequence
from pickle import PickleBuffer
from typing import Any

from rayprep.fleet.asked import Asked
from rayprep.fleet.handles import Handle
from rayprep.fleet.host_agent import CONCURRENCY_GROUPS, HostAgent
from rayprep.model.fleet import NodeInfo
from rayprep.model.package import Key
from rayprep.model.result import NodeBlock


class DamagesOne(HostAgent):
    """A host whose first package is damaged on its way."""

    damaged = False

    def pieces(self, asked: Asked, keys: Sequence[Key]) -> Iterator[PickleBuffer]:
        whole = b"".join(map(bytes, super().pieces(asked, keys)))
        yield PickleBuffer(whole if self.damaged else whole.replace(b"so!", b"so "))
        self.damaged = True

    @classmethod
    def start(cls, node: NodeInfo, coordinator: Handle) -> Handle:
        """As `start_agent`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)
        made: Any = ray.remote(num_cpus=0, concurrency_groups=CONCURRENCY_GROUPS)(cls)  # type: ignore[call-overload]
        block = NodeBlock(host=node.host, node_id=node.node_id, address=node.address)
        return made.options(scheduling_strategy=there).remote(block, coordinator)
