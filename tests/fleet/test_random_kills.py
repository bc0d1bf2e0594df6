"""kill -9 of whatever carries a run, at random moments inside its stages: what is left is true, and mended by the next.

    RAYPREP_KILLS_LOG=tests/fleet/random_kills.log pytest -n 0 -m slow tests/fleet/test_random_kills.py

hits a hundred times and writes down what it saw.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fleet.faults import Run, agents_of, all_is_well, empty, leases_are_free, nothing_is_left_behind, on, ours
from tests.fleet.fleet import Fleet, Node, fleet_of
from tests.processes import wait_for

pytestmark = pytest.mark.ray

MIB = "64"
"""So much is shipped that its source can be hit on the way."""
TTL_S = 6.0
TRIES = 4
"""A hit that comes after the end of its stage does not count, though all that must hold then holds as well."""
UNPROVED = ("--verify", "none")
VICTIMS = {
    "driver": ("serve", "receive"),
    "agent": ("serve", "receive"),
    "coordinator": ("serve", "receive"),
    "raylet": ("serve", "receive"),
    "source": ("receive",),
}
"""Who is hit -> in which stages. An agent and a raylet are those of the host that is at it."""


@dataclass(frozen=True)
class Hit:
    """One kill, drawn from its seed."""

    seed: int
    victim: str
    stage: str
    share: float
    """How far into the stage, of the time that it took when nobody was hit."""


def draw(victim: str, seed: int) -> Hit:
    drawn = random.Random(seed)
    return Hit(seed, victim, drawn.choice(VICTIMS[victim]), drawn.uniform(0, 0.9))


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("kills")
    nodes = (Node(f"gpu-{index}", base / f"n{index}", extra_env={"FAKE_MIB": MIB}) for index in range(2))
    with fleet_of(base, *nodes, ttl_s=TTL_S) as fleet:
        yield fleet


class Rounds:
    """One kill after another on one cluster."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.number = fleet, 0
        all_is_well(fleet, "unhurt", *UNPROVED)
        ends = {event["name"]: event for event in fleet.events("unhurt") if event["phase"] == "end"}
        ends |= {event["name"]: event for event in fleet.events("unhurt") if event.get("status") == "ok"}
        self.took = {stage: ends[stage]["duration_s"] for stage in ("serve", "receive")}

    def go(self, victim: str, *, mend: bool) -> str:
        """Hits until it was inside the stage, and returns what was seen.

        Args:
            mend: end each round with a run that nobody hits. Without it that is left to the next round's, which
                begins on what this one left and has to end well, too. After a driver there is one in any case.
        """
        for _ in range(TRIES):
            self.number += 1
            began = time.monotonic()
            hit = draw(victim, random.SystemRandom().randrange(2**32))
            inside, seen = self._round(hit)
            if mend or victim == "driver":
                self.mend()
                seen += "; the next run: ok"
            if inside:
                return f"{self.number:3}  seed {hit.seed:10}  {seen}  ({time.monotonic() - began:.0f} s)"
        raise AssertionError(f"{TRIES} hits came late: {seen}")

    def mend(self) -> None:
        """A run that nobody hits."""
        run_id = f"mend-{self.number}"
        all_is_well(self.fleet, run_id, *UNPROVED)
        nothing_is_left_behind(self.fleet, run_id)

    def _round(self, hit: Hit) -> tuple[bool, str]:
        fleet, run_id = self.fleet, f"hit-{self.number}"
        run = Run(fleet, run_id, *UNPROVED, "--rebuild", "serve")
        wait_for(lambda: self._event(run_id, hit.stage, "start"), f"{hit.stage} to begin")
        after = hit.share * self.took[hit.stage]
        moment = time.monotonic() + after
        begun = self._event(run_id, hit.stage, "start")
        assert begun is not None
        host = fleet.nodes[begun["host"]]
        (process,) = self._victim(hit.victim, run, host, begun["settings"].get("source"))
        wait_for(lambda: time.monotonic() >= moment, "the moment")
        process.kill()
        inside = self._event(run_id, hit.stage, "end") is None
        if hit.victim == "raylet":
            fleet.cluster.remove_node(host.ray_node, allow_graceful=False)
            fleet.add(host)
        code = run.wait()
        assert code == (-signal.SIGKILL if hit.victim == "driver" else 0), run.text
        nothing_is_left_behind(fleet, run_id)
        leases_are_free(fleet)
        where = f"{hit.victim:11} {after:4.2f} s into {hit.stage:7} of {host.name}"
        return inside, f"{where}  exit {code:3}, {self._outcome(run_id)}"

    def _event(self, run_id: str, stage: str, phase: str) -> dict[str, Any] | None:
        found = (each for each in self.fleet.events(run_id) if (each["name"], each["phase"]) == (stage, phase))
        return next((each for each in found if each.get("status") != "noop"), None)

    def _victim(self, victim: str, run: Run, host: Node, source: str | None) -> list[psutil.Process]:
        if victim == "driver":
            return [psutil.Process(run.process.pid)]
        if victim == "coordinator":
            return ours("ray::Coordinator")
        if victim == "raylet":
            return on(host, "raylet/raylet")
        return agents_of(self.fleet.nodes[source] if victim == "source" and source else host)

    def _outcome(self, run_id: str) -> str:
        hosts = self.fleet.result(run_id)["hosts"]
        said = (each.get("message", "") for each in self.fleet.events(run_id) if each["phase"] == "warning")
        refused = sum(message.startswith("not received") for message in said)
        states = [f"{name} {host['state']} at attempt {host['attempts']}" for name, host in sorted(hosts.items())]
        return ", ".join(states) + (f", {refused} not received" if refused else "")


Record = Callable[[str, object], None]


@pytest.mark.slow
def test_ten_kills(cluster: Fleet, record_property: Record) -> None:
    rounds = Rounds(cluster)
    for victim in [*VICTIMS] * 2:
        record_property("hit", rounds.go(victim, mend=False))
    rounds.mend()


@pytest.mark.slow
def test_a_hundred_kills(cluster: Fleet, tmp_path: Path) -> None:
    rounds = Rounds(cluster)
    with Path(os.environ.get("RAYPREP_KILLS_LOG", tmp_path / "log")).open("w", encoding="utf-8") as log:
        for number, victim in enumerate([*VICTIMS] * 20):
            if number % 2:
                empty(cluster)
            log.write(f"{rounds.go(victim, mend=True)}\n")
            log.flush()
