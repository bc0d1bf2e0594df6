"""The live state of a fleet's run, as `rayprep status` shows it: pure."""

from collections.abc import Iterable

from pydantic import Field

from rayprep.base.records import Record, Utc, Utf8
from rayprep.model.events import Event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.rollout import HostPhase


class HostNow(Record):
    """What was last heard of a host."""

    age_s: float
    last: Event


class FleetStatus(Record):
    """One look at one run."""

    run_id: str
    taken_at: Utc
    result: FleetResult | None = None
    """As it stands; null before the hosts were looked at."""
    now: dict[Utf8, HostNow] = Field(default_factory=dict)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the hosts that are left will have ended, by the mean of those that have; null before any has.

        A rough figure: hosts that receive are quicker than the one that builds.
        """
        if self.result is None:
            return None
        ended = [each for each in self.result.hosts.values() if each.state.is_good and each.duration_s]
        left = [each for each in self.result.hosts.values() if each.state in (HostPhase.WAITING, HostPhase.RUNNING)]
        if not ended or not left:
            return None
        receivers = [each.duration_s for each in ended if not each.built] or [each.duration_s for each in ended]
        waves = sum(1 for wave in self.result.waves if any(self._is_left(host) for host in wave))
        return max(1, waves) * _mean(receivers)

    def _is_left(self, host: str) -> bool:
        hosts = self.result.hosts if self.result else {}
        return host in hosts and hosts[host].state in (HostPhase.WAITING, HostPhase.RUNNING)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
