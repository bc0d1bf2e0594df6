"""A host's events on their way to the coordinator, a few in one call: for Ray, a call costs more than what it says."""

import threading

from rayprep.fleet.handles import Handle
from rayprep.model.events import Event

GATHER_S_PER_HOST = 0.005
"""A thousand hosts are heard within five seconds, and a few at once. The coordinator gets no more than some hundred
calls in a second, however many they are."""


class Reporter:
    """Says what one host has to say in one run. Any thread may; nothing waits, so a dead coordinator costs the log."""

    def __init__(self, coordinator: Handle, run_id: str, host: str, gather_s: float) -> None:
        self._coordinator, self.run_id, self._host, self._gather_s = coordinator, run_id, host, gather_s
        self._gathered: list[Event] = []
        self._lock = threading.Lock()

    def say(self, each: Event) -> None:
        with self._lock:
            self._gathered.append(each.model_copy(update={"host": self._host}))
            first = len(self._gathered) == 1
        if first:
            timer = threading.Timer(self._gather_s, self.flush)
            timer.daemon = True
            timer.start()

    def flush(self) -> None:
        """Sends what is gathered. To be called before the step that it is about is known to have ended."""
        with self._lock:
            said, self._gathered = self._gathered, []
            if said:  # under the lock, or two threads' calls could leave in the wrong order
                self._coordinator.record.remote(self.run_id, said)
