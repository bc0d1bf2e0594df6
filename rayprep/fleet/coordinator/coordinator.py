"""The coordinator actor: gathers what the agents say, writes logs and results, shows metrics, holds the leases.

On a cluster it is one named, detached actor on the head, which outlives drivers and comes back when it is killed: its
leases are on disk, and after a restart it grants none for one time to live. It ends itself when nobody has needed it
for a while. For a single host it is an unnamed one, which dies with its driver.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import ray

import rayprep
from rayprep.fleet.coordinator.lease_file import LeaseFile
from rayprep.fleet.coordinator.metrics import RayMetrics
from rayprep.fleet.coordinator.run import KeptRun
from rayprep.host.layout import Layout
from rayprep.model.campaign import is_run_of
from rayprep.model.events import Event
from rayprep.model.fleet.leases import Granted, Holder, LeaseTable, Queued
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.status import FleetStatus
from rayprep.model.result import PrepResult
from rayprep.model.snapshot import ProfileSnapshot

NAME = "rayprep-coordinator"
LEASE_TTL_S = 30.0
IDLE_S = 600.0
DRIVER_SILENCE_S = 60.0
"""A driver asks for events several times a second."""
WATCH_S = 1.0


class Coordinator:
    """All methods return at once, one at a time.

    Args:
        state: the lease table's file; None for a single host, which needs no leases.
        idle_s: how long it stays with no run and no lease.
    """

    def __init__(self, state: Path | None = None, ttl_s: float = LEASE_TTL_S, idle_s: float = IDLE_S) -> None:
        self._file, self._idle_s = LeaseFile(state) if state else None, idle_s
        self._runs: dict[str, KeptRun] = {}
        self._used = time.monotonic()
        self._table = self._file.read(ttl_s, time.monotonic()) if self._file else LeaseTable(ttl_s=ttl_s)
        self._metrics = RayMetrics() if state else None
        if self._file:
            threading.Thread(target=self._watch, daemon=True).start()

    def version(self) -> str:
        """That of the rayprep that it was started from."""
        return rayprep.__version__

    def open_run(self, layout: Layout, run_id: str) -> None:
        """A coordinator that has come back is told of the run again; its log goes on."""
        if run_id not in self._runs:
            self._runs[run_id] = KeptRun(layout, run_id)

    def record(self, run_id: str, events: list[Event]) -> None:
        """Events of one host, heartbeats among them. Those of a run that is not known are dropped."""
        if run := self._runs.get(run_id):
            run.record(events)

    def events_since(self, run_id: str, count: int) -> list[Event] | None:
        """All events of the run after the first `count`; None where the run is not known (any more)."""
        run = self._runs.get(run_id)
        return run.since(count) if run else None

    def snapshot(self, run_id: str, host: str | None, snapshot: ProfileSnapshot) -> None:
        """What lay in a host's caches before the work, kept as `cache_snapshot.json`."""
        if run := self._runs.get(run_id):
            run.snapshot(host, snapshot)

    def mirror(self, run_id: str, host: str, result: PrepResult) -> None:
        """Keeps a copy of a host's own result as `hosts/<host>/prep_result.json`."""
        if run := self._runs.get(run_id):
            run.mirror(host, result)

    def update(self, run_id: str, result: FleetResult) -> None:
        """Writes `fleet_result.json`; a finished one ends the run here."""
        if run := self._runs.get(run_id):
            run.update(result)
            self._measure(run)
            self._used = time.monotonic()

    def _measure(self, run: KeptRun) -> None:
        if self._metrics:
            self._metrics.record(run.samples())

    def close_run(self, run_id: str) -> None:
        """The driver has seen all that it will."""
        if (run := self._runs.pop(run_id, None)) and run.abandon():
            self._measure(run)

    def status(self, run_id: str | None = None) -> list[FleetStatus]:
        """Of one run, or a campaign's, or of all that go on."""
        chosen = [run for name, run in self._runs.items() if run_id is None or is_run_of(name, run_id)]
        return [run.status() for run in chosen]

    def request(self, wanted: Sequence[tuple[str, str, int]], who: Holder) -> list[Granted | Queued]:
        """Asks for leases, or for their prolongation: one after another, to the first that somebody else holds.

        Args:
            wanted: store, key and the epoch that the store has seen.

        Raises:
            HostUnfit: a grant cannot be put on the disk, so that it does not count.
        """
        answers = list[Granted | Queued]()
        for store, key, seen_epoch in wanted:
            answers.append(self._request(store, key, who, seen_epoch))
            if isinstance(answers[-1], Queued):
                break
        return answers

    def _request(self, store: str, key: str, who: Holder, seen_epoch: int) -> Granted | Queued:
        table, answer = self._table.request(store, key, who, time.monotonic(), seen_epoch)
        if self._file and isinstance(answer, Granted) and answer.fresh:
            self._file.keep(table, store, key)
        self._keep(table)
        return answer

    def renew(self, held: Sequence[tuple[str, str, int]], who: Holder) -> list[bool]:
        """Of each store, key and epoch: false where `who` does not hold it any more."""
        answers = []
        for store, key, epoch in held:
            table, still = self._table.renew(store, key, who, epoch, time.monotonic())
            self._keep(table)
            answers.append(still)
        return answers

    def release(self, held: Sequence[tuple[str, str, int]], who: Holder) -> None:
        for store, key, epoch in held:
            self._keep(self._table.release(store, key, who, epoch, time.monotonic()))

    def withdraw(self, store: str, key: str, who: Holder) -> None:
        self._keep(self._table.withdraw(store, key, who, time.monotonic()))

    def forget(self, who: Holder) -> None:
        """Gives back whatever a dead agent held."""
        self._keep(self._table.forget(who))

    def _keep(self, table: LeaseTable) -> None:
        self._table, self._used = table, time.monotonic()

    def _watch(self) -> None:
        """Closes runs whose driver is gone, and ends this actor when it has been idle long enough.

        Only looks; what it changes goes through the actor's own calls, one at a time like all others.
        """
        own = ray.get_runtime_context().current_actor
        while True:
            time.sleep(WATCH_S)
            now = time.monotonic()
            for run_id, run in list(self._runs.items()):
                if now - run.heard > DRIVER_SILENCE_S:
                    own.close_run.remote(run_id)
            if not self._runs and now - self._used > self._idle_s and self._table.expire(now).idle:
                ray.kill(own, no_restart=True)
