"""In which order the hosts of a fleet start, and when it stops: pure decisions over the state of each host.

Hosts start in waves. All of them are one wave (`--rollout all`), or `--canary N` is the first and the rest follow in
waves of `--wave`. A wave starts once every host of the last one has ended well or finally failed, and while no more
than `--max-failures` have. Within a wave no host waits for another, and none is held up by another's failure.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import Field

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record
from rayprep.model.result import RunStatus

DEFAULT_WAVE = "25%"


class HostPhase(StrEnum):
    """How far a host is. `verified` and `ready` ended as they should; only the first with a proof that stands."""

    WAITING = "waiting"
    RUNNING = "running"
    VERIFIED = "verified"
    READY = "ready"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_good(self) -> bool:
        """It ended as it should."""
        return self in (HostPhase.VERIFIED, HostPhase.READY)


WORST_FIRST = (
    *(HostPhase.LOST, HostPhase.FAILED, HostPhase.RUNNING),
    *(HostPhase.WAITING, HostPhase.READY, HostPhase.VERIFIED),
)
"""As people are shown them."""


class HostState(Record):
    """One host, and how often it was started."""

    phase: HostPhase = HostPhase.WAITING
    starts: int = 0

    def started(self) -> "HostState":
        return HostState(phase=HostPhase.RUNNING, starts=self.starts + 1)

    def ended(self, phase: HostPhase) -> "HostState":
        return self.model_copy(update={"phase": phase})


class Rollout(Record):
    """The hosts of each wave, and what failures mean."""

    waves: tuple[tuple[str, ...], ...]
    node_retries: int = Field(default=1, ge=0)
    """How often a host that failed or was lost is started again, within its wave."""
    max_failures: int | None = Field(default=None, ge=0)
    """With more hosts finally failed than this, no further wave starts; null for no limit."""


class Step(Record):
    """What is to be done now. Nothing to start and not ended means: wait until a host ends."""

    start: tuple[str, ...] = ()
    ended: bool = False
    """Nothing runs, and nothing will be started."""
    stopped: str = ""
    """Why the remaining waves are left out; empty where none are."""


def make_rollout(
    hosts: Sequence[str],
    *,
    canary: int | None = None,
    wave: str | None = None,
    max_failures: int | None = None,
    node_retries: int = 1,
) -> Rollout:
    """Deals `hosts`, in their order, out to waves.

    Args:
        canary: `--canary`; without it and without `wave` all hosts are one wave.
        wave: `--wave`, a share of all hosts such as `25%` (rounded up), or a count.
        max_failures: `--max-failures`; not given, it is 0 with waves, and no limit without.

    Raises:
        BadRequest: a value is of the wrong form or out of range.
    """
    for flag, number, least in (
        ("--canary", canary, 1),
        ("--max-failures", max_failures, 0),
        ("--node-retries", node_retries, 0),
    ):
        if number is not None and number < least:
            raise BadRequest(f"{flag} {number} is less than {least}", hint=f"give {least} or more")
    if canary is None and wave is None:
        sizes = [len(hosts)]
    else:
        sizes = [canary or 0]
        size = _wave_size(DEFAULT_WAVE if wave is None else wave, len(hosts))
        sizes += [size] * -(-len(hosts) // size)
        max_failures = 0 if max_failures is None else max_failures
    return Rollout(waves=_dealt(hosts, sizes), node_retries=node_retries, max_failures=max_failures)


def _wave_size(wave: str, hosts: int) -> int:
    """At least 1. Raises BadRequest."""
    if not (match := re.fullmatch(r"([1-9][0-9]{0,8})(%?)", wave)) or (match[2] and int(match[1]) > 100):
        raise BadRequest(
            f"--wave {wave!r} is neither a share nor a count of hosts", hint="give one such as 25% (up to 100%), or 8"
        )
    size = -(-hosts * int(match[1]) // 100) if match[2] else int(match[1])
    return max(1, size)


def _dealt(hosts: Sequence[str], sizes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Empty waves are left out."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    waves = (tuple(hosts[start : start + size]) for start, size in zip(starts, sizes, strict=True))
    return tuple(wave for wave in waves if wave)


def next_step(rollout: Rollout, states: Mapping[str, HostState]) -> Step:
    """What to do now. A host that `states` does not name is waiting.

    To be asked whenever a host has ended, and once at the beginning. Whoever carries it out marks the hosts as
    `started` before asking again.
    """
    failures = 0
    for number, wave in enumerate(rollout.waves):
        now = {host: states.get(host, HostState()) for host in wave}
        start = tuple(host for host, state in now.items() if _may_start(state, rollout.node_retries))
        if start or any(state.phase is HostPhase.RUNNING for state in now.values()):
            return Step(start=start)
        failures += sum(not state.phase.is_good for state in now.values())
        left = sum(map(len, rollout.waves[number + 1 :]))
        if left and rollout.max_failures is not None and failures > rollout.max_failures:
            why = f"failed hosts: {failures}, --max-failures {rollout.max_failures}; not started: {left}"
            return Step(ended=True, stopped=why)
    return Step(ended=True)


def _may_start(state: HostState, retries: int) -> bool:
    return state.phase is not HostPhase.RUNNING and not state.phase.is_good and state.starts <= retries


def fleet_status(rollout: Rollout, states: Mapping[str, HostState], *, interrupted: bool = False) -> RunStatus:
    """`ok` when every host ended well, `error` when none did; `partial` otherwise, while it runs, or if interrupted."""
    if interrupted or not next_step(rollout, states).ended:
        return RunStatus.PARTIAL
    hosts = [host for wave in rollout.waves for host in wave]
    good = sum(states.get(host, HostState()).phase.is_good for host in hosts)
    if not good:
        return RunStatus.ERROR
    return RunStatus.OK if good == len(hosts) else RunStatus.PARTIAL
