"""Which TCP port is free, found out by binding it."""

import socket
from collections.abc import Sequence

from rayprep.base.errors import ErrorType, StageError


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` now. Somebody else may take it a moment later."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As SGLang's own server binds: what its predecessor left in TIME_WAIT is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def first_free(ports: Sequence[int], tried: Sequence[int] = ()) -> int:
    """The first of `ports` that is free.

    Args:
        tried: ports that were already given up, for the error.

    Raises:
        StageError: `port_all_busy`.
    """
    for port in ports:
        if is_free(port):
            return port
    busy = (*tried, *ports)
    if len(busy) == 1:  # a user's own server has no other
        hint = "end what listens there, or give the server another --port"
        raise StageError(ErrorType.PORT_ALL_BUSY, f"the server's port {busy[0]} is taken", hint=hint)
    raise StageError(ErrorType.PORT_ALL_BUSY, f"every warm-up port is taken: tried {', '.join(map(str, busy))}")
