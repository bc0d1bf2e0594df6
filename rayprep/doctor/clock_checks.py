"""The clock: results carry times, and ninja trusts them."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rayprep
from rayprep.base.records import utc_from_timestamp
from rayprep.doctor.bounded import run_bounded
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject

_YEARS = range(2025, 2100)
_SLACK_S = 60.0
"""The files may come from a file server whose clock is a little ahead."""
_NTP_S = 3.0


@dataclass(frozen=True)
class Clock:
    now: float
    newest_file: float
    """The newest of rayprep's own files: the clock was there already."""
    monotonic_step: float
    """Seconds between two readings of the clock that must never go back."""


def judge_clock(clock: Clock) -> Finding:
    now = utc_from_timestamp(clock.now)
    remedy = "set the clock (chronyc makestep, timedatectl set-ntp true)"
    if int(now[:4]) not in _YEARS:
        return fail("clock", f"it is {now}", remedy)
    if clock.now + _SLACK_S < clock.newest_file:
        newest = utc_from_timestamp(clock.newest_file)
        return fail("clock", f"it is {now}, and rayprep's own files are of {newest}: ninja would build anew", remedy)
    if clock.monotonic_step < 0:
        back = f"the monotonic clock went back by {-clock.monotonic_step:.3f} s: no time-out can be trusted"
        return fail("clock", back, "mend the host's clock source (dmesg | grep -i clocksource)")
    return ok("clock", now)


def judge_ntp(answer: str | None, why_unknown: str = "") -> Finding:
    """
    Args:
        answer: what `timedatectl show -p NTPSynchronized` printed; null where it could not say.
    """
    match (answer or "").strip():
        case "NTPSynchronized=yes":
            return ok("clock sync", "synchronised")
        case "NTPSynchronized=no":
            remedy = "start chronyd or systemd-timesyncd: times of different hosts are compared"
            return warn("clock sync", "not synchronised", remedy)
        case other:
            return ok("clock sync", f"unknown: {why_unknown or other or 'timedatectl says nothing'}")


def read_clock() -> Clock:
    before = time.monotonic()
    files = [path.stat().st_mtime for place in rayprep.__path__ for path in Path(place).rglob("*.py")]
    return Clock(now=time.time(), newest_file=max(files), monotonic_step=time.monotonic() - before)


def _ask_ntp(environ: Mapping[str, str]) -> Finding:
    timedatectl = shutil.which("timedatectl", path=environ.get("PATH"))
    if timedatectl is None:
        return judge_ntp(None, "there is no timedatectl")
    try:
        ran = run_bounded([timedatectl, "show", "-p", "NTPSynchronized"], environ, _NTP_S)
    except OSError as error:
        return judge_ntp(None, str(error))
    return judge_ntp(ran.output) if ran.status == 0 else judge_ntp(None, f"timedatectl: {ran.gist}")


def _clock(subject: Subject) -> list[Finding]:
    return [judge_clock(read_clock()), _ask_ntp(subject.environ)]


CHECKS: Checks = {"clock": _clock}
