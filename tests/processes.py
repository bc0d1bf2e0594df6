"""Looking at real processes from a test."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Polls until `condition()` is true; fails with `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def family(pid: int) -> list[psutil.Process]:
    """Everything below a process, and itself."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(result: Path) -> list[psutil.Process]:
    """Living processes that a run started for its stages, by its `prep_result.json` and their environment."""
    from rayprep.host.environment import RUN_MARK
    from rayprep.host.process import marked_processes

    invocation = json.loads(result.read_text(encoding="utf-8"))["run"]["invocation"]
    return marked_processes(RUN_MARK, invocation)


def named(processes: list[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those with all `words` in their command line."""
    found = []
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(process)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live; a zombie is dead."""

    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


def import_s() -> float:
    """How long it takes to import Ray here and now, which is what a busy machine makes long of a short command."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ray"], check=True)
    return time.monotonic() - started
