"""The process that is attached to Ray: `python -m rayprep.fleet.attached DESCRIPTOR OWNER`

Ray ends a process that is attached to it from C++, without a word, when it has lost its head for a minute. So the
process that the user started attaches to no Ray. It starts this one, tells it what to do over DESCRIPTOR, a socket, and
ends the run itself where this one ends or hangs (`RayProcess`). OWNER is its process id.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

from rayprep.base.errors import ErrorType, Interrupted, RayprepError
from rayprep.fleet.messages import Attach, Orders, Wire
from rayprep.fleet.runtime.session import joined_ray, local_ray
from rayprep.report.screen import write_trace

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    descriptor, owner = int(argv[0]), int(argv[1])
    _die_with(owner)
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    wire, orders = Wire(connection), Orders(connection)
    attach = orders.next()
    if not isinstance(attach, Attach):
        return 0
    try:
        from rayprep.fleet.worker import Worker  # with Ray: what its import raises is for the owner, too

        with _attached(attach), Worker(wire, orders, attach.address) as worker:
            wire.end(None)
            while (job := orders.next()) is not None:
                try:
                    wire.end(worker.result_of(job))
                except ConnectionError:
                    raise
                except Exception as error:  # noqa: BLE001 - the owner says it, and closes the result
                    wire.end(_as_ours(error, debug=attach.debug))
    except ConnectionError:
        return 1  # the owner has gone
    except KeyboardInterrupt:
        wire.end(Interrupted())
    except Exception as error:  # noqa: BLE001 - the owner says it
        wire.end(_as_ours(error, debug=attach.debug))
    return 0


def _as_ours(error: Exception, *, debug: bool) -> RayprepError:
    if isinstance(error, RayprepError):
        return error
    if debug:
        write_trace(error, sys.stderr)
    return RayprepError(f"{type(error).__name__}: {error}", error_type=ErrorType.INTERNAL_ERROR)


def _die_with(owner: int) -> None:
    """However hard the owner dies, and whatever this process waits for then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:  # it has died meanwhile
        os._exit(1)


@contextlib.contextmanager
def _attached(attach: Attach) -> Iterator[None]:
    if attach.address is not None:
        with joined_ray(attach.address):
            yield
    else:
        assert attach.sessions is not None
        with local_ray(attach.sessions):
            yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
