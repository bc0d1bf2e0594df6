"""The guard of one process tree: `python -m rayprep.host.guard GRACE_S REPORT_FD COMMAND...`

It stands between an owner and the command that the owner wants run. It reads the owner's pipe on standard input:
when that ends, because the owner closed it or died however hard, the guard ends the whole tree. It is a child
subreaper, so every descendant of the command stays its own descendant, whatever sessions they make or parents they
lose. It inherits the owner's locks, which are therefore held until the tree is dead.

The command's exit status is the guard's (128 + N for signal N), and a line of JSON, a `Cleanup`, goes to REPORT_FD.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

import psutil

from rayprep.base.text import printable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def descendants() -> list[psutil.Process]:
    """All living processes below this one."""
    return [process for process in psutil.Process().children(recursive=True) if lives(process)]


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: it stays one where neither its parent nor the init reaps. psutil's own wait has it alive."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _reap() -> dict[int, int]:
    """Waits for every child that has ended, adopted ones too. Pid -> exit status as a shell gives it."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            ended[pid] = code if code >= 0 else 128 - code
    return ended


def _signal_all(processes: list[psutil.Process], signum: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, PermissionError, psutil.AccessDenied):
            process.send_signal(signum)


def end_tree(grace_s: float) -> dict[str, bool | float]:
    """TERM, then KILL to whatever is left after `grace_s`, and to whatever that still forks. A `Cleanup` as a dict."""
    kill_sent = False
    _signal_all(descendants(), signal.SIGTERM)
    term_until = time.monotonic() + grace_s
    _reap()
    # No deadline: what the kernel cannot end yet still writes, and we hold the locks. An owner that lives has one.
    while _has_children():
        if time.monotonic() >= term_until:
            kill_sent = True
            _signal_all(descendants(), signal.SIGKILL)
        time.sleep(POLL_S)
        _reap()
    return {"kill_sent": kill_sent, "killed": True, "timeout_s": grace_s}


def _has_children() -> bool:
    """Whether anything of the tree is left. Whatever loses its parent becomes our child, so the kernel knows.

    A list of processes does not: one whose parent dies while the list is made is in none of its branches.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _run(command: list[str], report_fd: int) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # If even the guard is killed hard, the command goes with it; its locks are then free a moment later.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - the guard has one thread
        close_fds=True,
    )
    os.set_inheritable(report_fd, False)
    return child


def _report(report_fd: int, cleanup: dict[str, bool | float]) -> None:
    with contextlib.suppress(OSError):  # nobody is left to read it
        os.write(report_fd, (json.dumps(cleanup) + "\n").encode())


def main(argv: list[str]) -> int:
    grace_s, report_fd, command = float(argv[0]), int(argv[1]), argv[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    asked_to_end = False

    def ask(*_: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    # Ctrl-C and a closed terminal never reach this session; the owner closes the pipe when it means us.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, ask)
    try:
        # Kept until the end: a Popen that is thrown away waits for its process, and the status would be lost.
        child = _run(command, report_fd)
    except OSError as error:
        print(f"rayprep guard: {printable(command[0])}: {error.strerror}", file=sys.stderr)
        _report(report_fd, {"kill_sent": False, "killed": True, "timeout_s": grace_s})
        return 127
    status: int | None = None
    while status is None and not asked_to_end:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable and not os.read(0, 4096):
            asked_to_end = True
        status = _reap().get(child.pid, status)
    _report(report_fd, end_tree(grace_s))
    return 143 if status is None else status


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stderr.flush()
    # Not sys.exit: an interpreter that shuts down has given its signal handlers back, and one more SIGTERM then
    # would stand in place of the command's status.
    os._exit(exit_status)
