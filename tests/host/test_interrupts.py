"""What ends a run from outside, and what does not."""

import signal
import subprocess
import sys

import pytest

HIT = """
import os, signal, sys
from rayprep.host.interrupts import Interrupts

signum = getattr(signal, sys.argv[1])
with Interrupts() as interrupts:
    try:
        os.kill(os.getpid(), signum)
        print("goes on")
    except KeyboardInterrupt:
        print("raised")
    interrupts.as_flag()
    interrupts.asked = False
    os.kill(os.getpid(), signum)
    print("asked" if interrupts.asked else "goes on")
"""


def hit(signum: signal.Signals, *wrapper: str) -> list[str]:
    command = [*wrapper, sys.executable, "-c", HIT, signum.name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_they_raise_and_then_they_are_a_flag(signum: signal.Signals) -> None:
    assert hit(signum) == ["raised", "asked"]


def test_who_was_started_by_nohup_outlives_its_terminal() -> None:
    assert hit(signal.SIGHUP, "nohup") == ["goes on", "goes on"]
    assert hit(signal.SIGTERM, "nohup") == ["raised", "asked"]
