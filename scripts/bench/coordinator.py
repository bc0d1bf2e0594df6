#!/usr/bin/env python3
"""What a run on a thousand hosts costs its coordinator and its driver, at true rate.

    PYTHONPATH=. scripts/bench/coordinator.py [--hosts 1000] [--receive-s 5] [--prove-s 110] [--folder /tmp]

The driver, the coordinator's actor, the leases and Ray between them are the real ones; the hosts are played by threads
of a few actors, and write no caches. One host builds, all others receive it under a lease of their own, which takes
`--receive-s` each, and prove it. What they say meanwhile are the lines that a real host on an H200 said
(`tests/gpu/evidence`), at the times at which it said them, and from then on to `--prove-s` a heartbeat every 60 s.
Each answers with a result of the usual size. Prints tables and, last, one line of JSON. Exits 1 over a bound:

    coordinator  under 5 % of one core over the whole run, and 300 MiB
    result       fleet_result.json of all hosts from the driver's memory to the disk in under 2 s

A real coordinator has as many more connections as there are hosts; here it has one for each actor.
"""

import argparse
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil
from simulated_hosts import SimulatedAgent, SimulatedMember, read_script, start_players

from rayprep.fleet.actors import join_coordinator, living_nodes
from rayprep.fleet.agent.messages import Asked
from rayprep.fleet.coordinator.run import KeptRun
from rayprep.fleet.driver import FleetRequest, _Drive
from rayprep.fleet.event_batcher import GATHER_S_PER_HOST
from rayprep.fleet.handles import Handle
from rayprep.fleet.result_writer import FleetRecord
from rayprep.fleet.runtime.session import NAMESPACE
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import Layout
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.rollout import HostState, make_rollout, next_step
from rayprep.model.fleet.spec import FleetSpec, NodeInfo
from rayprep.model.fleet.status import FleetStatus
from rayprep.model.spec import resolve
from rayprep.report.fleet_view import FleetLineView, LiveFleetView

CORE_BOUND, MEMORY_BOUND_MIB, RESULT_BOUND_S = 0.05, 300, 2.0
RUN_ID = "bench"


class TimedDrive(_Drive):
    """Knows how long each turn of its loop took, without its pause."""

    turns: list[float]
    since: float | None = None

    def _breathe(self) -> None:
        if self.since is not None:
            self.turns.append(time.thread_time() - self.since)
        self.since = None
        super()._breathe()
        self.since = time.thread_time()


class Usage:
    """What a process uses while the block runs: seconds of CPU, and MiB at the most."""

    def __init__(self, pid: int) -> None:
        self.process, self.ended = psutil.Process(pid), threading.Event()
        self.cpu_s = self.wall_s = self.peak_mib = self.busiest = 0.0

    def __enter__(self) -> "Usage":
        self.cpu_s, self.wall_s = self._cpu(), time.perf_counter()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s, self.wall_s = self._cpu() - self.cpu_s, time.perf_counter() - self.wall_s
        self.ended.set()
        self.watch.join()

    @property
    def core(self) -> float:
        return self.cpu_s / self.wall_s

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def _watch(self) -> None:
        seen: deque[tuple[float, float]] = deque()
        while not self.ended.wait(0.5):
            self.peak_mib = max(self.peak_mib, self.process.memory_info().rss / 2**20)
            seen.append((time.perf_counter(), self._cpu()))
            while seen[-1][0] - seen[0][0] > 60:
                seen.popleft()
            took = seen[-1][0] - seen[0][0]
            if took > 55:
                self.busiest = max(self.busiest, (seen[-1][1] - seen[0][1]) / took)


def play(folder: Path, hosts: int, receive_s: float, prove_s: float) -> tuple[FleetResult, dict[str, object]]:
    """A whole run. Returns its result, and what it cost."""
    import ray

    layout = Layout(folder / "profiles", folder / "telemetry")
    nodes = living_nodes()
    coordinator = join_coordinator(nodes, layout.telemetry / "coordinator" / "leases.jsonl")
    resolved = resolve({"model": "tiny-dense"})
    asked = Asked(resolved=resolved, run_id=RUN_ID, gather_s=GATHER_S_PER_HOST * hosts)
    players = start_players(coordinator, read_script(receive_s, prove_s), hosts)
    members: dict[str, SimulatedMember] = {}
    for number in range(hosts):
        host = f"gpu-{number:04}"
        node = NodeInfo(host=host, node_id=f"{number:056}", address="10.0.0.1", port=1, gpus=8, labels={}, head=False)
        members[host] = SimulatedMember(node, coordinator)
        members[host].agent = SimulatedAgent(players[number % len(players)], host)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        view = FleetLineView(nowhere, json_lines=False)
        request = FleetRequest(asked, FleetSpec(), layout, "bench", view, Interrupts())
        record = FleetRecord(asked, request.fleet, request.address, layout, coordinator, view)
        drive = TimedDrive(request, dict(members), record)
        drive.turns = []
        with Usage(_pid(coordinator)) as there, Usage(os.getpid()) as here:
            result = drive.go()
        coordinator.close_run.remote(RUN_ID)
        ray.get(coordinator.version.remote())
    said = layout.session_log(RUN_ID).read_text(encoding="utf-8").count("OPTIMIZE_JSON")
    return result, {
        "wall_s": round(here.wall_s, 1),
        "events": said,
        "coordinator_core": round(there.core, 4),
        "coordinator_core_busiest_minute": round(there.busiest, 4),
        "coordinator_mib": round(there.peak_mib, 1),
        "coordinator_ms_per_event": round(there.cpu_s / said * 1000, 2),
        "driver_core": round(here.core, 4),
        "driver_mib": round(here.peak_mib, 1),
        "turn_ms": round(statistics.median(drive.turns) * 1000, 1),
        "longest_turn_ms": round(max(drive.turns) * 1000, 1),
    }


def _pid(coordinator: Handle) -> int:
    from ray._private.state import actors

    return int(actors()[coordinator._actor_id.hex()]["Pid"])


def write_result(folder: Path, result: FleetResult) -> float:
    """Seconds from the driver's memory over Ray to the disk, by a coordinator that knows the run."""
    import ray

    layout = Layout(folder / "profiles", folder / "telemetry")
    coordinator = join_coordinator(living_nodes(), layout.telemetry / "coordinator" / "leases.jsonl")
    ray.get(coordinator.open_run.remote(layout, "written"))
    seconds = median_s(lambda: ray.get(coordinator.update.remote("written", result)))
    coordinator.close_run.remote("written")
    return round(seconds, 3)


def median_s(work: Callable[[], object], rounds: int = 5) -> float:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def rules(folder: Path, result: FleetResult) -> dict[str, float]:
    """Milliseconds of what the driver and `status` do over and over, each for all hosts once."""
    from rayprep.report.fleet_view import fleet_table

    rollout = make_rollout(list(result.hosts))
    states = {host: HostState().started() for host in result.hosts}
    kept = KeptRun(Layout(folder / "profiles", folder / "telemetry"), "kept")
    status = FleetStatus(run_id=RUN_ID, taken_at=result.run.started_at, result=result)
    view = LiveFleetView(io.StringIO())
    view.update(result)
    timed: dict[str, Callable[[], object]] = {
        "next_step": lambda: next_step(rollout, states),
        "result written": lambda: kept.update(result),
        "rows of status": lambda: fleet_table(status),
        "live table": lambda: view._screen.grid(view._draw()),
    }
    return {name: round(median_s(work) * 1000, 1) for name, work in timed.items()}


def report(hosts: int, cost: dict[str, object], wrote_s: float, timed: dict[str, float]) -> list[bool]:
    core, mib = float(str(cost["coordinator_core"])), float(str(cost["coordinator_mib"]))
    checks = [core < CORE_BOUND, mib < MEMORY_BOUND_MIB, wrote_s < RESULT_BOUND_S]
    print("$", *sys.argv)
    print(f"{hosts} simulated hosts of one group on {os.cpu_count()} cores, {cost['wall_s']} s at true rate")
    print(f"coordinator   {core * 100:5.1f} % of a core (bound {CORE_BOUND:.0%})  {mib:5.0f} MiB (bound 300)")
    print(f"              {float(str(cost['coordinator_core_busiest_minute'])):.1%} in its busiest minute")
    print(f"              {cost['events']} events, {cost['coordinator_ms_per_event']} ms of CPU an event, all included")
    print(f"driver        {float(str(cost['driver_core'])) * 100:5.1f} % of a core  {cost['driver_mib']:5} MiB")
    print(
        f"              a turn of its loop takes {cost['turn_ms']} ms of CPU, the longest {cost['longest_turn_ms']} ms"
    )
    print(f"result        {wrote_s:5.2f} s to the disk (bound {RESULT_BOUND_S:.0f} s)")
    print("one by one    " + ", ".join(f"{name} {ms} ms" for name, ms in timed.items()))
    return checks


def main() -> int:
    import ray
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--receive-s", type=float, default=5.0)
    parser.add_argument("--prove-s", type=float, default=110.0)
    parser.add_argument("--folder", help="where the run's files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayprep-bench-", dir=options.folder) as base:
        head = {"num_cpus": 2, "object_store_memory": 200 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            result, cost = play(Path(base), options.hosts, options.receive_s, options.prove_s)
            verified = sum(host.state.value == "verified" for host in result.hosts.values())
            if verified < options.hosts:
                first = next(host.error.message for host in result.hosts.values() if host.error)
                sys.exit(f"only {verified} of {options.hosts} hosts were verified: {first}")
            wrote_s = write_result(Path(base), result)
        finally:
            ray.shutdown()
            cluster.shutdown()
        timed = rules(Path(base), result)
    checks = report(options.hosts, cost, wrote_s, timed)
    figures = {"cores": os.cpu_count(), "hosts": options.hosts, **cost, "result_s": wrote_s, "one_by_one_ms": timed}
    print(json.dumps({**figures, "ok": all(checks)}))
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
