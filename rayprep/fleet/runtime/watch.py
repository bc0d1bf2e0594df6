"""Whether the Ray that this process is attached to still lives."""

import time

import psutil

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.fleet.runtime.session import answers_at
from rayprep.host.guard import lives

KNOCK_EVERY_S = 2.0
GONE_S = 15.0
"""A head that takes no connection for so long is gone. Ray itself ends whoever is attached after 60 s."""
_VITAL = ("gcs_server", "raylet")


class RayGone(HostUnfit):
    """Ray has lost what it cannot do without."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_type=ErrorType.NODE_LOST)


class RayWatch:
    """Of a cluster's head, or of the processes of a Ray that this process has started.

    Ray would tell nobody, and end this process a minute later. A head that is frozen is not gone: what goes on needs it
    for nothing but its end.

    Args:
        address: the cluster's; None for a Ray of our own.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._heard = self._knocked = time.monotonic()
        below = psutil.Process().children() if address is None else []
        self._below = {process.name(): process for process in below}

    def check(self) -> None:
        """To be called now and then. Raises RayGone."""
        if self._address is None:
            self._look()
            return
        pause = time.monotonic() - self._knocked
        if pause > GONE_S:  # nobody has asked for long, so that nothing is known
            self._heard = time.monotonic()
        if pause > KNOCK_EVERY_S:
            self._knock(self._address)
            self._knocked = time.monotonic()

    def _look(self) -> None:
        for name in _VITAL:
            process = self._below.get(name)
            if process is None or not lives(process):
                raise RayGone(f"{name} died, a process of the Ray on this host")

    def _knock(self, address: str) -> None:
        now = time.monotonic()
        if answers_at(address):
            self._heard = now
        elif now - self._heard > GONE_S:
            raise RayGone(f"the cluster's head at {address} takes no connection any more")
