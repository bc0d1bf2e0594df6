"""Examines one host: what it has and lacks for rayprep, and what to do about it.

Every check runs in a thread of its own that nobody has to wait for: a dead NFS server or a GPU that fell off the
bus holds up its own check and no other, and the report comes at the deadline all the same.
"""

import socket
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial

import rayprep
from rayprep.base.records import utc_now
from rayprep.doctor import (
    clock_checks,
    cuda_checks,
    gpu_checks,
    init_checks,
    package_checks,
    storage_checks,
    system_checks,
    toolchain_checks,
)
from rayprep.doctor.bounded import answer_within, start
from rayprep.doctor.findings import DoctorReport, Finding, fail, warn
from rayprep.doctor.subject import Check, Subject
from rayprep.host.gpu import GpuInventory, read_gpus
from rayprep.host.layout import Layout
from rayprep.model.spec import DeviceChoice

__all__ = ["examine"]

_GPU_DEADLINE_S = 15.0
"""Without the persistence daemon NVML wakes every GPU first, which takes seconds."""
_DEADLINE_S = 20.0

_AREAS = (
    package_checks,
    gpu_checks,
    cuda_checks,
    toolchain_checks,
    storage_checks,
    system_checks,
    clock_checks,
    init_checks,
)
"""In the order in which they are shown."""


def examine(layout: Layout, environ: Mapping[str, str], device: DeviceChoice) -> DoctorReport:
    """Carries out all checks side by side."""
    subject = Subject(layout, environ, device, _read_gpus())
    checks = {name: check for area in _AREAS for name, check in area.CHECKS.items()}
    answers = {name: start(partial(_carry_out, check, subject)) for name, check in checks.items()}
    wait(answers.values(), _DEADLINE_S)
    return DoctorReport(
        rayprep_version=rayprep.__version__,
        host=socket.gethostname(),
        taken_at=utc_now(),
        device=device.value,
        profiles_root=str(layout.profiles),
        telemetry_root=str(layout.telemetry),
        findings=tuple(finding for name, answer in answers.items() for finding in _findings(name, answer)),
    )


def _read_gpus() -> GpuInventory:
    try:
        return answer_within(_GPU_DEADLINE_S, "NVML", read_gpus)
    except TimeoutError as error:
        return GpuInventory(problem=str(error))


def _carry_out(check: Check, subject: Subject) -> list[Finding]:
    return list(check(subject))


def _findings(name: str, answer: "Future[list[Finding]]") -> list[Finding]:
    if not answer.done():
        return [fail(name, f"no answer within {_DEADLINE_S:.0f} s", "find out what hangs there (dmesg), and mend it")]
    try:
        return answer.result()
    except (OSError, ValueError) as error:
        return [warn(name, f"cannot be read: {str(error) or type(error).__name__}", "mend that, or look for yourself")]
