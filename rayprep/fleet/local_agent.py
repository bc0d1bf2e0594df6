"""The agent actor: one a host, owning its GPUs and its stages.

It has two concurrency groups, so that it answers and can be cancelled while a stage runs: `ctl` and `stage`.
Methods run off the main thread, so nothing here touches signals.
"""

import contextlib
import os
import threading
from functools import partial

import ray

from rayprep.fleet.handles import Handle
from rayprep.host.group_access import set_umask
from rayprep.model.events import Event
from rayprep.model.result import PrepResult
from rayprep.node import NodeRequest, ensure, take_survey
from rayprep.store.snapshot import Wanted, read_contents, take_snapshot

CONCURRENCY_GROUPS = {"ctl": 2, "stage": 1}
LOG_DEADLINE_S = 10.0


class Agent:
    """Carries out one request after another on the host that it is pinned to. A cancelled one does no more."""

    def __init__(self, coordinator: Handle) -> None:
        self._coordinator = coordinator
        self._cancelled = threading.Event()
        self._last_said: Handle = None
        set_umask()
        # Ray runs its workers at nice 15 unless told otherwise; only root may go back, and others lose little.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    def ensure(self, request: NodeRequest) -> PrepResult:
        """The `stage` group: runs to the end of the request."""
        if request.folder:
            # Not where Ray was started: its workers, and only they, import what lies there.
            with contextlib.suppress(OSError):
                os.chdir(request.folder)
        environ = dict(os.environ)
        survey = take_survey(request, environ)
        wanted = Wanted(survey.model.slug, survey.model.digest, request.resolved.spec.tp)
        layout = request.layout
        snapshot = take_snapshot(layout, read_contents(layout), survey.signature, wanted)
        self._coordinator.snapshot.remote(request.run_id, None, snapshot)
        request = request.model_copy(update={"before": snapshot})
        emit = partial(self._emit, request.run_id)
        result = ensure(request, environ, emit, self._cancelled.is_set, survey)
        self._await_the_log()
        return result

    def _await_the_log(self) -> None:
        """The driver ends the coordinator as soon as it has our answer."""
        if self._last_said is not None:
            ray.wait([self._last_said], timeout=LOG_DEADLINE_S)

    def cancel(self) -> None:
        """The `ctl` group: the running stage ends its children and returns."""
        self._cancelled.set()

    def ping(self) -> int:
        """The `ctl` group: this process's id."""
        return os.getpid()

    def _emit(self, run_id: str, event: Event) -> None:
        # Nothing waits for the answer: a dead coordinator costs the log, not the work.
        self._last_said = self._coordinator.record.remote(run_id, [event])
