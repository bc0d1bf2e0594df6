"""Commands and calls that end in time, against real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rayprep.doctor.bounded import answer_within, run_bounded
from rayprep.host.process import marked_processes
from tests.processes import wait_for


class TestBounded:
    def test_both_streams_and_the_status_come_back(self) -> None:
        ran = run_bounded(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], {}, 10)
        assert (ran.status, ran.output, ran.gist) == (3, "out\nerr\n", "err")

    def test_the_error_is_told_and_not_the_farewell(self) -> None:
        said = "echo 'In file x:'; echo 'x.cpp:1: fatal error: vector: none'; echo 'compilation terminated.'"
        assert run_bounded(["/bin/sh", "-c", said], {}, 10).gist == "x.cpp:1: fatal error: vector: none"

    def test_silence_is_told_by_its_status(self) -> None:
        assert run_bounded(["/bin/sh", "-c", "exit 3"], {}, 10).gist == "exit status 3"

    def test_at_the_time_out_the_grandchildren_end_too(self, tmp_path: Path) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer within 1 s"):
            run_bounded(["/bin/sh", "-c", f"sleep 300 & echo $! > {tmp_path / 'pid'}; wait"], dict(os.environ), 1)
        assert time.monotonic() - started < 10
        orphan = int((tmp_path / "pid").read_text())
        gone = (psutil.STATUS_ZOMBIE, None)
        wait_for(lambda: _status(orphan) in gone, "the sleep ends")

    def test_what_is_being_started_when_the_program_ends_does_not_outlive_it(self, tmp_path: Path) -> None:
        program = (
            "import os\n"
            "from rayprep.doctor.bounded import run_bounded, start\n"
            "command = ['/bin/sh', '-c', 'echo > \"$FIRST\"; sleep 300 & wait']\n"
            "for _ in range(100):\n"
            "    start(lambda: run_bounded(command, os.environ, 300))\n"
            "while not os.path.exists(os.environ['FIRST']):\n"
            "    pass\n"
        )
        environ = {**os.environ, "FIRST": str(tmp_path / "first")}
        subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)
        wait_for(lambda: marked_processes("FIRST", environ["FIRST"]) == [], "all commands end", 10.0)

    def test_nobody_waits_for_what_does_not_end(self) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="the sleeper: no answer within 0 s"):
            answer_within(0.1, "the sleeper", lambda: time.sleep(30))
        assert time.monotonic() - started < 10

    def test_an_answer_and_an_error_come_through(self) -> None:
        assert answer_within(10, "x", lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            answer_within(10, "x", lambda: 1 // 0)

    def test_what_is_not_there_is_an_os_error(self) -> None:
        with pytest.raises(FileNotFoundError):
            run_bounded([f"{sys.prefix}/no-such-program"], {}, 1)


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
