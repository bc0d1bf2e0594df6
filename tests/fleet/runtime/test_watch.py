"""When a Ray counts as gone, without one."""

import socket
import subprocess
import sys
import time

import pytest

from rayprep.base.errors import ErrorType
from rayprep.fleet.runtime import watch
from rayprep.fleet.runtime.watch import RayGone, RayWatch
from tests.processes import wait_for


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "KNOCK_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "GONE_S", 0.5)


def is_gone(watch: RayWatch) -> bool:
    try:
        watch.check()
    except RayGone as error:
        assert error.error_type is ErrorType.NODE_LOST
        return True
    return False


def test_a_head_that_takes_no_connection_is_gone_after_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = RayWatch(f"127.0.0.1:{head.getsockname()[1]}")
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert not is_gone(watch)
            time.sleep(0.02)
    closed = time.monotonic()
    wait_for(lambda: is_gone(watch), "it to be gone", 10)
    assert time.monotonic() - closed > 0.3


def test_one_that_nobody_has_asked_for_long_is_given_the_same_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = RayWatch(f"127.0.0.1:{head.getsockname()[1]}")
    time.sleep(1.0)
    assert not is_gone(watch)
    wait_for(lambda: is_gone(watch), "it to be gone", 10)


def test_a_ray_of_our_own_without_its_processes_is_gone() -> None:
    code = "from rayprep.fleet.runtime.watch import *\nRayWatch(None).check()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RayGone: gcs_server died" in done.stderr
