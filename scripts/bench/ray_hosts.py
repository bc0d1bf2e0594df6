"""Hosts on real Ray nodes of this machine, which ship to each other as the agents of a fleet do."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

from finished_cache import FinishedCache
from shipping_sides import Split, Stopwatch, hashing_s, receive, time_hashing

from rayprep.fleet.agent.shipping import AHEAD, Packages, PieceStream
from rayprep.fleet.handles import Handle
from rayprep.fleet.runtime.session import NAMESPACE
from rayprep.model.completion import Key

STORE_BYTES = 256 << 20


class Host:
    """Sends as `HostAgent.pieces`, and receives as `HostAgent.take` does, without a fleet's leases."""

    def __init__(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # as the agent
        self._splits: list[Split] = []
        self._packages = Packages()

    def ready(self) -> None:
        """Answers once it is there."""

    def pieces(self, cache: FinishedCache, keys: Sequence[Key]) -> Iterator[PickleBuffer]:
        time_hashing()
        stream, packing = self._packages.pieces(cache.layout, keys), Stopwatch(time.thread_time)
        while piece := packing(lambda: next(stream, b"")):
            yield piece
        self._splits.append({"pack": packing.seconds - hashing_s(), "hash": hashing_s()})

    def sent(self) -> Split:
        """What all that it has sent since the last time has cost it."""
        found, self._splits = self._splits, []
        return {part: sum(split[part] for split in found) for part in ("pack", "hash")}

    def take(self, source: Handle, cache: FinishedCache, target: Path) -> Split:
        generator = source.pieces.options(
            concurrency_group="ship", num_returns="streaming", _generator_backpressure_num_objects=AHEAD
        ).remote(cache, [(cache.completion.stage, cache.completion.key)])
        stream = TimedPieces("bench", generator)
        return receive(cache, target, stream, stream.moving)


class TimedPieces(PieceStream):
    """Knows how long it waited for its pieces."""

    def __init__(self, source: str, generator: Handle) -> None:
        super().__init__(source, generator)
        self.moving = Stopwatch()

    def read(self, size: int, /) -> bytes | memoryview:
        piece: memoryview = self.moving(lambda: super(TimedPieces, self).read(size))
        return piece


@contextmanager
def ray_hosts(count: int) -> Iterator[list[Handle]]:
    """`count` nodes with an actor each; the head has none."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    limits = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **limits})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=True) for _ in range(count)]
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        make: Any = ray.remote
        kind = make(num_cpus=0, concurrency_groups={"ship": 4})(Host)
        there = [NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False) for node in nodes]
        hosts = [kind.options(scheduling_strategy=each).remote() for each in there]
        ray.get([host.ready.remote() for host in hosts])
        yield hosts
    finally:
        ray.shutdown()
        cluster.shutdown()


def over_ray(hosts: Sequence[Handle], cache: FinishedCache, targets: Sequence[Path]) -> list[Split]:
    """From the first host to as many others as there are targets."""
    import ray

    source, receivers = hosts[0], hosts[1 : len(targets) + 1]
    taken = [host.take.remote(source, cache, target) for host, target in zip(receivers, targets, strict=True)]
    found: list[Split] = ray.get(taken)
    sent: Split = ray.get(source.sent.remote())
    return [*found, sent]
