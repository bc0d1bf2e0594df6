"""One of rayprep's own commands, run on each host of a cluster with that host's environment."""

import os
import subprocess
import sys
from collections.abc import Sequence

import ray

from rayprep.fleet.actors import living_nodes, pinned_actor
from rayprep.fleet.command_answers import Answer
from rayprep.host.environment import passed_on
from rayprep.model.fleet.spec import FleetSpec, choose_nodes
from rayprep.model.spec import DeviceChoice

LAST_LINE = 1000
START_S = 60.0


class HostShell:
    """An actor on one host."""

    def run(self, argv: Sequence[str], timeout_s: float) -> Answer:
        """The command in a process of its own; it ends with its time."""
        # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
        command = [sys.executable, "-P", "-m", "rayprep", *argv]
        env = passed_on(os.environ)
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return Answer(exit_code=3, error=f"not done within {timeout_s:.0f} s")
        lines = done.stderr.strip().splitlines() or [""]
        return Answer(exit_code=done.returncode, output=done.stdout, error=lines[-1][:LAST_LINE])


def ask_everywhere(spec: FleetSpec, argv: Sequence[str], timeout_s: float) -> dict[str, Answer]:
    """All hosts at once; one that does not answer says so in its line, and holds up nobody for longer than the time.

    Raises:
        BadRequest, HostUnfit: no host is chosen.
    """
    nodes = choose_nodes(living_nodes(), spec, DeviceChoice.CPU)  # to look or to remove needs no GPU
    shells = {node.host: pinned_actor(HostShell, node) for node in nodes}
    calls = {host: shell.run.remote(argv, timeout_s) for host, shell in shells.items()}
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s + START_S)
    answers = {}
    for host, call in calls.items():
        try:
            answers[host] = ray.get(call, timeout=0)
        except ray.exceptions.RayError as error:
            answers[host] = Answer(exit_code=3, error=f"it does not answer: {type(error).__name__}")
    for shell in shells.values():
        ray.kill(shell)
    return answers
