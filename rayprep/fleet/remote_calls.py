"""How a call of a host's agent ends, and whether the agent still answers while it goes on."""

import time
from typing import Any

import ray

from rayprep.base.errors import ErrorType, RayprepError
from rayprep.fleet.actors import answers
from rayprep.fleet.handles import Handle
from rayprep.model.fleet.spec import NodeInfo

PING_EVERY_S = 15.0
SILENCE_S = 60.0
"""A host whose agent does not answer for so long is given up, whatever Ray thinks of it."""


class Lost(RayprepError):
    """The host does not answer any more.

    `dead` where its agent is known to have ended; otherwise it may only be silent, and still at work.
    """

    exit_code = 3

    def __init__(self, message: str, *, dead: bool = False) -> None:
        super().__init__(message, error_type=ErrorType.NODE_LOST)
        self.dead = dead


def outcome_of(call: Handle, node: NodeInfo) -> Any:  # noqa: ANN401 - whatever the called method returns
    """What a call of an actor on `node` has come to, which has ended.

    Raises:
        Lost: the host, or its agent, is not there any more.
        RayprepError: the call failed on the host.
    """
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise _failure(error, node.host) from None
    except ray.exceptions.RayError as error:
        # Ray also calls those dead which it only cannot reach; their raylet does not answer.
        dead = isinstance(error, ray.exceptions.ActorDiedError) and answers(node)
        raise Lost(f"{node.host} was lost: {type(error).__name__}", dead=dead) from None


def _failure(error: Exception, host: str) -> RayprepError:
    """What was raised on the host, as the driver takes it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayprepError):
        return Lost(f"{host}: {cause.message}") if cause.error_type is ErrorType.NODE_LOST else cause
    if isinstance(cause, ray.exceptions.RayError):
        return Lost(f"{host}: {type(cause).__name__} while it worked")
    return RayprepError(f"{cause or error}", error_type=ErrorType.INTERNAL_ERROR)


class Pulse:
    """Of one agent, from its start or a new attempt on. Ray sees a dead host in seconds or minutes, and a frozen agent
    never."""

    def __init__(self) -> None:
        self._ping: Handle = None
        self._heard = time.monotonic()

    def check(self, host: str, agent: Handle) -> None:
        """Asks now and then. Raises Lost where it has not answered for too long."""
        now = time.monotonic()
        if self._ping is not None and ray.wait([self._ping], timeout=0)[0]:
            self._ping, self._heard = None, now
        elif self._ping is None and now - self._heard > PING_EVERY_S:
            self._ping, self._heard = agent.ping.options(concurrency_group="ctl").remote(), now
        elif self._ping is not None and now - self._heard > SILENCE_S:
            raise Lost(f"{host} has not answered for {SILENCE_S:.0f} s")
