"""Hosts on one machine: each with a name and an address of its own, and all of them gone with the test."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

NETWORK = Path(__file__).with_name("network")
STEP_S = 120.0


class Hosts:
    """Network namespaces on one bridge, in mount and process namespaces that end with this process.

    They share the file system, so whatever a host keeps for itself needs a path of its own.
    """

    def __init__(self, *names: str) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Hosts":
        user = () if os.getuid() == 0 else ("--user", "--map-root-user")
        namespaces = (*user, "--net", "--mount", "--pid", "--mount-proc")
        command = ("unshare", *namespaces, "--fork", "--kill-child", NETWORK)
        named = [f"{name}={address}" for name, address in self.addresses.items()]
        self._unshare = subprocess.Popen([*command, *named], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            raise ChildProcessError(f"unshare: exit status {self._unshare.wait(STEP_S)}")
        (self._init,) = psutil.Process(self._unshare.pid).children()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._unshare.kill()
        for process in (self._unshare, *self._started):
            process.communicate(timeout=STEP_S)

    def command(self, host: str, *args: str | Path) -> list[str | Path]:
        """What runs `args` on that host."""
        name = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host)
        return [*self._enter, "ip", "netns", "exec", host, *name, *args]

    @property
    def _enter(self) -> tuple[str, ...]:
        user = () if os.getuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", "--target", str(self._init.pid), *user, "--net", "--mount", "--pid")

    def start(self, host: str, *args: str | Path, env: Mapping[str, str] = os.environ) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            self.command(host, *args),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(started)
        return started

    def plug(self, host: str, state: str) -> None:
        """Puts a host's cable in, or pulls it out: `up` or `down`."""
        self._ip("link", "set", f"to-{host}", state)

    def route(self, change: str, one: str, other: str) -> None:
        """With `add`, nothing goes between two hosts any more, while both reach all the rest; with `del` it does."""
        for host, away in ((one, other), (other, one)):
            self._ip("-n", host, "route", change, "blackhole", f"{self.addresses[away]}/32")

    def _ip(self, *args: str) -> None:
        subprocess.run([*self._enter, "ip", *args], check=True, timeout=STEP_S)

    def daemons(self) -> list[psutil.Process]:
        """What runs on any of them and has not us for a parent, with all below it; zombies, too."""
        return self._init.children(recursive=True)
