"""Whether somebody reaps the orphans here.

What rayprep or Ray leaves behind when it is killed goes to this container's pid 1, or to a sub-reaper below it. One
that never waits leaves it a zombie: a dead raylet then looks alive, and so do its actors.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayprep.doctor.bounded import run_bounded
from rayprep.doctor.findings import Finding, ok, warn
from rayprep.doctor.subject import Checks, Subject

_ORPHAN_S = 0.05
_REAPED_S = 2.1
"""An init that reaps does so at once, or looks around every second or two."""
_SHELL_S = 5.0


@dataclass(frozen=True)
class Process:
    """What /proc says of one process."""

    name: str
    state: str
    parent: int


@dataclass(frozen=True)
class Orphan:
    """How a process whose parent had gone came to its end."""

    reaper: str
    """Its new parent, `systemd (pid 1)`."""
    stays_zombie: bool


def judge_init(orphan: Orphan) -> Finding:
    if not orphan.stays_zombie:
        return ok("init", f"{orphan.reaper} reaps orphans")
    remedy = "start the container with --init, or under tini; on Kubernetes set shareProcessNamespace"
    return warn("init", f"{orphan.reaper} does not reap: dead processes stay zombies, and seem alive to Ray", remedy)


def parse_stat(text: str) -> Process:
    """The start of /proc/PID/stat. The name stands in parentheses and may hold some itself."""
    before, _, after = text.rpartition(")")
    state, parent, *_ = after.split()
    return Process(before.partition("(")[2], state, int(parent))


def make_orphan(environ: Mapping[str, str]) -> Orphan:
    """Lets a shell leave a short sleep behind, and watches its end. Where nobody reaps, one zombie stays.

    Raises:
        OSError: there is no shell, or /proc is another pid namespace's.
    """
    if (seen := Path("/proc/self").readlink()) != Path(str(os.getpid())):
        raise ProcessLookupError(f"/proc is of another pid namespace: it calls this process {seen}")
    ran = run_bounded(["/bin/sh", "-c", f"sleep {_ORPHAN_S} >/dev/null 2>&1 & echo $!"], environ, _SHELL_S)
    if not ran.output.strip().isdigit():
        raise ProcessLookupError(f"the shell started no child: {ran.gist}")
    orphan = int(ran.output)
    reaper = _named(_read(orphan))
    deadline = time.monotonic() + _ORPHAN_S + _REAPED_S
    while (process := _read(orphan)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return Orphan(reaper, stays_zombie=process is not None and process.state == "Z")


def _named(orphan: Process | None) -> str:
    parent = _read(orphan.parent) if orphan else None
    return f"{parent.name} (pid {orphan.parent})" if orphan and parent else "the init"


def _read(pid: int) -> Process | None:
    """A process that is gone is reaped; it has no stat any more."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _init(subject: Subject) -> list[Finding]:
    return [judge_init(make_orphan(subject.environ))]


CHECKS: Checks = {"init": _init}
