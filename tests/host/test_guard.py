"""The guard by itself, as its owner starts it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.host.programs import TREE, ended, next_line
from tests.processes import alive, wait_for


@dataclass
class Guarded:
    """A guard with its owner's ends of the pipes."""

    process: subprocess.Popen[str]
    report_fd: int

    def tree(self, count: int) -> list[psutil.Process]:
        return [psutil.Process(int(next_line(self.process))) for _ in range(count)]

    def close_pipe(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def report(self) -> dict[str, Any]:
        """The whole report, which is over when the guard is."""
        with os.fdopen(self.report_fd) as pipe:
            loaded: dict[str, Any] = json.loads(pipe.read())
        return loaded


def start(*command: str, grace_s: float = 0.5) -> Guarded:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "rayprep.host.guard", str(grace_s), str(writing), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[writing],
        start_new_session=True,
    )
    os.close(writing)
    return Guarded(process, reading)


@pytest.fixture
def three() -> Iterator[tuple[Guarded, list[psutil.Process]]]:
    """A guard over three living generations, which all end at SIGTERM, however busy this machine is."""
    guarded = start(*TREE, "3", "daemon", grace_s=30.0)
    with ended(guarded.process):
        tree = guarded.tree(3)
        assert len(alive(tree)) == 3
        yield guarded, tree
        assert alive(tree) == []


Three = tuple[Guarded, list[psutil.Process]]


def test_the_end_of_the_owners_pipe_ends_the_tree(three: Three) -> None:
    guarded, _ = three
    guarded.close_pipe()
    assert guarded.process.wait(30) == 143
    assert guarded.report() == {"kill_sent": False, "killed": True, "timeout_s": 30.0}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guard_ends_the_tree(three: Three, signum: signal.Signals) -> None:
    guarded, _ = three
    guarded.process.send_signal(signum)
    assert guarded.process.wait(30) == 143
    assert guarded.report()["killed"] is True
    assert guarded.process.stderr is not None
    assert guarded.process.stderr.read() == "", "no trace"


def test_more_signals_do_not_cut_the_end_short(three: Three) -> None:
    guarded, _ = three
    while guarded.process.poll() is None:
        guarded.process.send_signal(signal.SIGTERM)
    assert guarded.process.returncode == 143
    assert guarded.report()["killed"] is True


def test_a_word_from_the_owner_is_not_the_end(three: Three) -> None:
    guarded, tree = three
    assert guarded.process.stdin is not None
    guarded.process.stdin.write("hello\n")
    guarded.process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        guarded.process.wait(0.5)
    assert len(alive(tree)) == 3
    guarded.close_pipe()
    guarded.process.wait(30)


def test_a_report_that_nobody_reads_is_no_error(three: Three) -> None:
    guarded, _ = three
    os.close(guarded.report_fd)
    guarded.close_pipe()
    assert guarded.process.wait(30) == 143


def test_the_command_goes_with_a_guard_killed_hard() -> None:
    guarded = start(*TREE, "1", "deaf")
    with ended(guarded.process):
        tree = guarded.tree(1)
        guarded.process.kill()
        wait_for(lambda: not alive(tree), "the command is dead")
        os.close(guarded.report_fd)


def test_the_command_holds_neither_the_report_nor_the_locks(tmp_path: Path) -> None:
    """The guard holds them for it. A command with the report's end would keep its owner waiting for ever."""
    with (tmp_path / "lock").open("w") as lock:
        reading, writing = os.pipe()
        guard = subprocess.Popen(
            [sys.executable, "-m", "rayprep.host.guard", "1", str(writing), "ls", "-l", "/proc/self/fd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[writing, lock.fileno()],
        )
        os.close(writing)
        with ended(guard):
            assert guard.stdout is not None
            listed = guard.stdout.read()
        os.close(reading)
    assert "/dev/null" in listed, "its input"
    assert str(tmp_path / "lock") not in listed
    assert listed.count("pipe:") == 1, "its output"


def test_what_refuses_to_end_is_killed_after_the_grace_and_not_before() -> None:
    guarded = start(*TREE, "2", "deaf", grace_s=1.0)
    with ended(guarded.process):
        tree = guarded.tree(2)
        started = time.monotonic()
        guarded.close_pipe()
        guarded.process.wait(30)
        assert 1.0 <= time.monotonic() - started < 6
    assert alive(tree) == []
    assert guarded.report() == {"kill_sent": True, "killed": True, "timeout_s": 1.0}


CHAINS = """
import os, signal, subprocess, sys, time
for _ in range(25):
    subprocess.Popen(["sh", "-c", "sh -c 'trap \\"\\" TERM; echo $$; exec sleep 120' & wait"], start_new_session=True)
time.sleep(120)
"""


def test_those_whose_parents_die_first_are_not_lost_sight_of() -> None:
    """The parents die at SIGTERM while the list of processes is being read; the deaf ones below them live on."""
    guarded = start(sys.executable, "-c", CHAINS, grace_s=0.5)
    with ended(guarded.process):
        deaf = guarded.tree(25)
        guarded.close_pipe()
        guarded.process.wait(60)
        assert alive(deaf) == []
    assert guarded.report()["killed"] is True


RELAY = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.02)
    if os.fork():
        os._exit(0)
"""


PARENT = """
import os, signal
if os.fork():
    os.wait()
    signal.pause()
"""
"""Stays until it is told to end, however late that is."""


def test_one_that_hands_itself_on_is_not_taken_for_dead() -> None:
    """Each of it lives for a moment and leaves a child: no list of processes is ever true of it."""
    guarded = start(sys.executable, "-c", f"{PARENT}{RELAY}", grace_s=0.2)
    with ended(guarded.process):
        guarded.tree(1)
        guarded.close_pipe()
        guarded.process.wait(30)
        assert guarded.process.stdout is not None
        over, _, _ = select.select([guarded.process.stdout], [], [], 5)
        assert over, "its output is still held open by one of them"
        assert guarded.process.stdout.read() == ""
    assert guarded.report() == {"kill_sent": True, "killed": True, "timeout_s": 0.2}
