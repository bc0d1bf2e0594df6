"""Talking HTTP to a server that may hang, refuse or die: in threads that nobody has to wait for."""

import http.client
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_BODY_SHOWN = 300
HEALTH_TIMEOUT_S = 30.0
"""SGLang answers /health only after it has generated a token, and gives that 20 s."""


@dataclass(frozen=True)
class Answer:
    status: int
    beginning: str
    """Of the body, on one line."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    api_key: str | None = None

    def request(self, method: str, path: str, timeout_s: float, body: str | None = None) -> Answer:
        """One request on a connection of its own. The body is read to its end; its beginning is kept.

        Raises:
            OSError: refused, reset, or nothing came for `timeout_s`.
            http.client.HTTPException: the other end speaks no HTTP, or closed in the middle.
        """
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            beginning = response.read(_BODY_SHOWN)
            while response.read(1 << 16):
                pass
            return Answer(response.status, " ".join(beginning.decode(errors="replace").split()))
        finally:
            connection.close()


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    """Calls `work` in a daemon thread: one that hangs holds up neither us nor the interpreter's end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Health:
    """Asks GET /health again and again, one request at a time, without ever waiting for the answer."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._asked: Future[Answer] | None = None

    def is_up(self) -> bool:
        """Whether the last answer was 200. Asks anew when there was another answer, or none."""
        if self._asked is not None and not self._asked.done():
            return False
        if self._asked is not None and self._asked.exception() is None and self._asked.result().status == 200:
            return True
        self._asked = in_background(self._address.request, "GET", "/health", HEALTH_TIMEOUT_S)
        return False
