"""What goes between the process that the user started and the one that is attached to Ray in its place.

From the owner: `Attach`, then jobs one after another, and `CANCEL`. To the owner: events and a fleet's state as they
come, `Alive` several times a second, and one `Outcome` for the start and for each job.
"""

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rayprep.base.errors import RayprepError
from rayprep.fleet.agent.messages import Asked
from rayprep.host.layout import Layout
from rayprep.model.events import Event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.spec import FleetSpec
from rayprep.model.result import PrepResult
from rayprep.node.request import NodeRequest

CANCEL = "cancel"
UPDATE_EVERY_S = 1.0
"""A large fleet's state takes long to send, and its table is not read more often."""


@dataclass(frozen=True)
class Attach:
    """To a cluster, or to a Ray of this host's own."""

    address: str | None
    """The cluster's, HOST:PORT."""
    sessions: Path | None
    """Where a Ray of our own keeps its sessions, where there is no address."""
    debug: bool = False
    """Show the traces of what nobody has foreseen."""


@dataclass(frozen=True)
class HostJob:
    """One request on this host."""

    request: NodeRequest
    uses_gpus: bool


@dataclass(frozen=True)
class FleetJob:
    """One request on the cluster, as `FleetRequest` has it."""

    asked: Asked
    fleet: FleetSpec
    layout: Layout
    address: str
    more: bool


@dataclass(frozen=True)
class Alive:
    """A sign of life."""

    agent_pid: int | None
    """Of this host's agent, once it is placed."""


@dataclass(frozen=True)
class Outcome:
    """What the start or a job has come to."""

    value: PrepResult | FleetResult | RayprepError | None
    """None of a start that went well."""


class Wire:
    """The owner's view, as the attached process has it: all that is to be shown goes to the owner."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.agent_pid: int | None = None
        self._updated = -UPDATE_EVERY_S

    def show(self, event: Event) -> None:
        self._connection.send(event)

    def update(self, result: FleetResult) -> None:
        """The state of a fleet, as it stands."""
        if time.monotonic() - self._updated >= UPDATE_EVERY_S:
            self._updated = time.monotonic()
            self._connection.send(result)

    def refresh(self) -> None:
        """Something goes on, or is waited for."""
        self._connection.send(Alive(self.agent_pid))

    def end(self, value: PrepResult | FleetResult | RayprepError | None) -> None:
        self._connection.send(Outcome(value))

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        """The owner's own view is the owner's to end."""


class Orders:
    """What the owner wants."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cancelled = False

    @property
    def asked(self) -> bool:
        """Whether the job is to be cancelled. After one that was there is no other."""
        if not self._cancelled and self._connection.poll():
            self._cancelled = self.next() is None
        return self._cancelled

    def next(self) -> object:
        """Waits for the next order. None where there is no more to do: the owner says so, or has gone."""
        try:
            order: object = self._connection.recv()
        except (EOFError, OSError):
            return None
        return None if order == CANCEL else order
