"""A GPU that the CPU plays. Real tensors, and a clock of its own: a call costs what `fused_moe` says of its config."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch


class Gpu:
    now_ms = 0.0
    captured: list[float] | None = None
    """What the calls of the graph that is being captured cost."""

    def spend(self, ms: float) -> None:
        if self.captured is None:
            self.now_ms += ms
        else:
            self.captured.append(ms)


GPU = Gpu()


class Graph:
    calls: tuple[float, ...] = ()

    def replay(self) -> None:
        GPU.now_ms += sum(self.calls)

    def reset(self) -> None:
        pass


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    GPU.captured = []
    try:
        yield
        graph.calls = tuple(GPU.captured)
    finally:
        GPU.captured = None


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = GPU.now_ms

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def set_device(gpu: int) -> None:
    if str(gpu) in os.environ.get("FAKE_FULL_GPUS", "").split(","):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 15.00 MiB free.")


CPU = torch.device("cpu")
torch.device = lambda *_: CPU
torch.cuda.set_device, torch.cuda.synchronize = set_device, lambda: None
torch.cuda.get_device_properties = lambda gpu: SimpleNamespace(L2_cache_size=1 << 20)
torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.Event = Graph, capture, Event
