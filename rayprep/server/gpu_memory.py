"""The memory of the GPUs that a server runs on: how much is left, who holds the rest, and when it is back."""

import time
from collections.abc import Callable, Sequence

from rayprep.base.human import gib
from rayprep.host.gpu import GpuMemory, read_gpu_memory

HEADROOM_BYTES = 4 << 30
"""What the contract wants free once the server has its pools: CUDA graphs and kernels still need some."""
KEPT_MEMORY = "the GPU's memory was not back to where it was when the server had ended"
SLACK_BYTES = 512 << 20
"""What a GPU's use may differ by without anybody's having taken or kept memory."""


class ServerMemory:
    """Knows how the GPUs were before the server. Where NVML cannot tell, nothing is ever short or missing."""

    def __init__(self, gpu_uuids: Sequence[str]) -> None:
        self._uuids = tuple(gpu_uuids)
        self._before = read_gpu_memory(self._uuids)

    def is_short(self) -> bool:
        """Whether less than the headroom is free on one of them."""
        return any(gpu.free_bytes < HEADROOM_BYTES for gpu in read_gpu_memory(self._uuids) or ())

    def held_by_others(self) -> str:
        """What other processes held before the server started, "" where they held nothing."""
        return "; ".join(held(gpu) for gpu in self._before or () if gpu.used_bytes > SLACK_BYTES)

    def is_returned(self, wait_s: float, poll_s: float, tick: Callable[[], None]) -> bool | None:
        """Waits until all is as it was: the driver frees what a dead process held a moment after its end.

        None where nobody can tell; False after `wait_s`, also where another process has taken memory meanwhile.
        """
        if self._before is None:
            return None
        limits = [gpu.used_bytes + SLACK_BYTES for gpu in self._before]
        until = time.monotonic() + wait_s
        while (now := read_gpu_memory(self._uuids)) is not None:
            if all(gpu.used_bytes <= limit for gpu, limit in zip(now, limits, strict=True)):
                return True
            if time.monotonic() >= until:
                return False
            tick()
            time.sleep(poll_s)
        return None


def held(gpu: GpuMemory) -> str:
    """One GPU's memory and its holders in words."""
    named = [f"pid {pid}" + (f" {gib(size)}" if size else "") for pid, size in gpu.processes]
    who = f" ({', '.join(named)})" if named else ""
    return f"other processes held {gib(gpu.used_bytes)} of {gpu.uuid}{who}"
