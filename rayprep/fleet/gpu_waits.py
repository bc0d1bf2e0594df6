"""Hosts of a run that wait for their GPUs: whose they are is said, and none waits for longer than it was told to."""

import time
from collections.abc import Mapping

from rayprep.base.errors import HostUnfit
from rayprep.fleet.actors import holders, living_actors
from rayprep.fleet.agent_pool import let_idle_gpus_go
from rayprep.fleet.remote_host import Member
from rayprep.fleet.result_writer import FleetRecord
from rayprep.model.events import Phase
from rayprep.model.fleet.rollout import HostPhase

SAY_WAITING_S = 10.0


class GpuWaits:
    """Of one run."""

    def __init__(self, members: Mapping[str, Member], record: FleetRecord, timeout_s: float) -> None:
        self._members, self._record, self._timeout_s = members, record, timeout_s
        self._waiting: dict[str, tuple[float, float]] = {}
        """Hosts that wait -> since when, and when it was last said."""

    def look(self) -> list[Member]:
        """Of claims that Ray does not place, says whose the GPUs are; returns the hosts that have waited in vain."""
        now = time.monotonic()
        waiting = [member for member in self._members.values() if member.waits_for_gpus]
        self._waiting = {member.host: self._waiting.get(member.host, (now, now)) for member in waiting}
        due = [member for member in waiting if now - self._waiting[member.host][1] >= SAY_WAITING_S]
        if not due:
            return []
        let_idle_gpus_go(self._members)
        living = living_actors()
        for member in due:
            self._say(member, holders(living.get(member.node.node_id, [])), now)
        return [member for member in due if not member.busy]

    def _say(self, member: Member, holder: str, now: float) -> None:
        since = self._waiting[member.host][0]
        self._waiting[member.host] = (since, now)
        fields = {"held_for_s": round(now - since, 1), "holder": holder, "message": "GPUs", "slug": "the GPUs"}
        self._record.say(member.host, Phase.WAIT_LOCK, **fields)
        if now - since > self._timeout_s:
            why = f"the GPUs of {member.host} are held by {holder}"
            member.end(HostPhase.FAILED, HostUnfit(why, hint="end that job, or --exclude the host"))
