"""What the host allows a process: open files, memory, a clock that is right, an init that reaps."""

import os
import resource
import sys
from pathlib import Path

import psutil

from rayprep.base.human import gib
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject

_OPEN_FILES = 65535
"""What Ray asks for: every worker and every connection is a file, on the head most of all."""
_PROCESSES = 4096
_SHM_BYTES = 2 << 30
"""NCCL and a cluster's object store need some; rayprep's own local Ray takes 80 MiB."""
_MEMORY_BYTES = 4 << 30
"""torch and two compilers beside Ray."""
_TOO_LITTLE_MEMORY = 1 << 30


def judge_open_files(soft: int, hard: int) -> Finding:
    """Ray raises the soft limit to the hard one by itself, so the hard limit is what counts."""
    found = f"soft limit {_limit(soft)}, hard limit {_limit(hard)}"
    if _reach(soft) >= _OPEN_FILES:
        return ok("open files", found)
    if _reach(hard) >= _OPEN_FILES:
        return ok("open files", f"{found}, up to which Ray raises it")
    return warn("open files", found, f"allow {_OPEN_FILES} (limits.conf, LimitNOFILE=, docker --ulimit nofile=)")


def judge_processes(soft: int) -> Finding:
    if _reach(soft) >= _PROCESSES:
        return ok("processes", f"limit {_limit(soft)}")
    return warn("processes", f"limit {soft}; threads count, and every Ray worker has dozens", f"ulimit -u {_PROCESSES}")


def judge_locked_memory(soft: int) -> Finding:
    if soft == resource.RLIM_INFINITY:
        return ok("locked memory", "unlimited")
    return ok("locked memory", f"limit {gib(soft)}; only NCCL over InfiniBand needs it unlimited (ulimit -l)")


def _reach(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _limit(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def judge_shared_memory(free: int) -> Finding:
    if free >= _SHM_BYTES:
        return ok("/dev/shm", f"{gib(free)} free")
    remedy = "start the container with --shm-size=8g, or remove old files there"
    return warn("/dev/shm", f"{gib(free)} free, too little for NCCL and for Ray's objects", remedy)


def judge_memory(total: int, available: int, limit: int | None) -> Finding:
    """
    Args:
        limit: of the control group; null where there is none.
    """
    bound = min(total, limit) if limit is not None else total
    usable = min(available, bound)
    found = f"{gib(usable)} of {gib(bound)} available"
    if bound < total:
        found += f" (the container's limit; the host has {gib(total)})"
    remedy = "end other processes, or give the container more memory"
    if usable < _TOO_LITTLE_MEMORY:
        return fail("memory", found, remedy)
    return warn("memory", found, remedy) if usable < _MEMORY_BYTES else ok("memory", found)


def cgroup_memory_limit(membership: str, tree: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The smallest limit of our control group and those above it, version 1 or 2.

    Args:
        membership: the text of /proc/self/cgroup.
    """
    limits = []
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (tree / "memory", "memory.limit_in_bytes") if controllers else (tree, "memory.max")
        below = Path(group.lstrip("/"))
        # In a container the path is often the host's, and the container's own group is the top of what it sees.
        files = [top / folder / name for folder in (below, *below.parents)]
        texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
        limits += [int(text) for text in texts if text.isdigit()]
    return min(limits, default=None)


def judge_encoding(encoding: str, locale: str) -> Finding:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        return ok("encoding", f"{encoding} ({locale})")
    remedy = "export LC_ALL=C.UTF-8"
    return warn("encoding", f"file names are {encoding} ({locale}): others are mangled in logs and results", remedy)


def _limits(subject: Subject) -> list[Finding]:
    found = [
        judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        judge_processes(resource.getrlimit(resource.RLIMIT_NPROC)[0]),
    ]
    if subject.wants_gpu:
        found.append(judge_locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]))
    return found


def _memory(_: Subject) -> list[Finding]:
    memory = psutil.virtual_memory()
    limit = cgroup_memory_limit(Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace"))
    return [judge_memory(memory.total, memory.available, limit)]


def _shared_memory(_: Subject) -> list[Finding]:
    stat = os.statvfs("/dev/shm")
    return [judge_shared_memory(stat.f_bavail * stat.f_frsize)]


def _encoding(subject: Subject) -> list[Finding]:
    named = [f"{name}={subject.environ[name]}" for name in ("LC_ALL", "LC_CTYPE", "LANG") if subject.environ.get(name)]
    return [judge_encoding(sys.getfilesystemencoding(), named[0] if named else "no locale set")]


CHECKS: Checks = {"limits": _limits, "memory": _memory, "/dev/shm": _shared_memory, "encoding": _encoding}
