"""Doing something as another user, in a real process of that user."""

import os
import pickle
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
NOBODY = 65534
time.strptime("0", "%S")  # its first call imports a module, from a Python that another user may not be able to read


def as_user(uid: int, work: Callable[[], T]) -> T:
    """What `work` returns, or raises, in a forked process that has given up being root."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: object
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            answer = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the parent
            answer = error
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        got: T | BaseException = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(got, BaseException):
        raise got
    return got
