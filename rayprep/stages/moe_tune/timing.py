"""How long GPU work takes, by CUDA graphs, which no busy CPU slows; only in the tuner's measuring processes."""

import statistics
from collections.abc import Callable

import torch


class _Span:
    """What the GPU took between its beginning and its end."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def __enter__(self) -> "_Span":
        self._start.record()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.record()

    @property
    def us(self) -> float:
        return float(self._start.elapsed_time(self._end)) * 1000.0


def graph_us(run: Callable[[], object], reset: Callable[[], object], replays: int) -> float:
    """Microseconds that `run` takes as a CUDA graph: the median of its replays, two before which do not count.

    Args:
        run: has run before, so that all it launches is compiled and loaded.
        reset: called before each replay, and not timed.

    Raises:
        RuntimeError: as torch does, for example where `run` cannot be captured.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
        spans = [_replayed(graph, reset) for _ in range(2 + replays)]  # queued, so that none waits for its launch
        torch.cuda.synchronize()
        return statistics.median(span.us for span in spans[2:])
    finally:
        graph.reset()  # the next capture gives its memory back


def _replayed(graph: torch.cuda.CUDAGraph, reset: Callable[[], object]) -> _Span:
    reset()
    with _Span() as span:
        graph.replay()
    return span
