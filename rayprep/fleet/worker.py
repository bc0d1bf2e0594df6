"""Jobs of the process that is attached to Ray, carried out one after another."""

from rayprep.fleet.agent_pool import AgentPool
from rayprep.fleet.driver import FleetRequest, drive_fleet
from rayprep.fleet.local_fleet import HostDriver
from rayprep.fleet.messages import FleetJob, HostJob, Orders, Wire
from rayprep.fleet.runtime.watch import RayWatch
from rayprep.model.fleet.result import FleetResult
from rayprep.model.result import PrepResult


class Worker:
    """Carries out jobs, and keeps a campaign's agents from one to the next."""

    def __init__(self, wire: Wire, orders: Orders, address: str | None) -> None:
        self._wire, self._orders, self._pool = wire, orders, AgentPool()
        self._watch = RayWatch(address)
        self._host = HostDriver(orders, self._watch)

    def __enter__(self) -> "Worker":
        self._pool.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self._pool.__exit__(*problem)

    def result_of(self, job: object) -> PrepResult | FleetResult:
        """Carry out a job. Raise whatever keeps it from a result."""
        if isinstance(job, HostJob):
            return self._host.drive(job, self._wire)
        assert isinstance(job, FleetJob)
        request = FleetRequest(
            job.asked, job.fleet, job.layout, job.address, self._wire, self._orders, job.more, self._watch
        )
        return drive_fleet(request, self._pool)
