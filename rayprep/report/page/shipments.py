"""What was built where, what went from host to host, and what that has spared: pure."""

from collections import defaultdict
from collections.abc import Mapping

from rayprep.base.human import seconds
from rayprep.base.records import Record
from rayprep.model.fleet.result import FleetHost
from rayprep.model.result import PrepResult, Received
from rayprep.model.run_files import RunRecord
from rayprep.model.stages import StageName, StageStatus


class Build(Record):
    """What one host has built, with how long that took; null where its own result is not there."""

    host: str
    stages: dict[StageName, float | None]


class Shipment(Record):
    """What one host has taken from another."""

    receiver: str
    what: Received


class Source(Record):
    """One host, and all that it has sent."""

    host: str
    stages: tuple[StageName, ...]
    receivers: int
    files: int
    bytes: int


class Spared(Record):
    """Compile time that hosts did not spend, since they received what others had built in this run."""

    by_host: dict[str, float]
    """In seconds, of every host that received something."""
    unknown: int
    """Stages that were received and are not in the sum, since no result of this run says how long they took."""
    receiving_s: float
    """What the receiving took in their place, all hosts together."""

    @property
    def total_s(self) -> float:
        return sum(self.by_host.values())


def builds_of(record: RunRecord) -> tuple[Build, ...]:
    found = [Build(host=host, stages=_built(known, record.results.get(host))) for host, known in record.hosts.items()]
    return tuple(each for each in found if each.stages)


def _built(known: FleetHost, result: PrepResult | None) -> dict[StageName, float | None]:
    own = result.stages if result else {}
    timed = {stage: each.duration_s for stage, each in own.items() if each.status is StageStatus.OK}
    return {**dict.fromkeys(known.built), **timed}


def shipments_of(hosts: Mapping[str, FleetHost]) -> tuple[Shipment, ...]:
    return tuple(Shipment(receiver=host, what=what) for host, known in hosts.items() for what in known.received)


def sources_of(shipments: tuple[Shipment, ...]) -> tuple[Source, ...]:
    """Whoever has sent, to most hosts first."""
    sent: dict[str, list[Shipment]] = defaultdict(list)
    for each in shipments:
        sent[each.what.source].append(each)
    sources = [
        Source(
            host=host,
            stages=tuple(stage for stage in StageName if any(stage in each.what.stages for each in given)),
            receivers=len({each.receiver for each in given}),
            files=sum(each.what.files for each in given),
            bytes=sum(each.what.bytes for each in given),
        )
        for host, given in sent.items()
    ]
    return tuple(sorted(sources, key=lambda source: (-source.receivers, source.host)))


def spared_by(record: RunRecord) -> Spared:
    """Each received stage counts as long as it took the host that built it, however many hosts passed it on."""
    by_host: dict[str, float] = {}
    unknown = 0
    for host, known in record.hosts.items():
        for stage in {stage for each in known.received for stage in each.stages}:
            took = _took(_origin(host, stage, record.hosts), stage, record)
            by_host[host] = by_host.get(host, 0.0) + seconds(took)
            unknown += took is None
    receiving = sum(seconds(each.what.duration_s) for each in shipments_of(record.hosts))
    return Spared(by_host=by_host, unknown=unknown, receiving_s=receiving)


def _origin(host: str, stage: StageName, hosts: Mapping[str, FleetHost]) -> str:
    """Where what `host` received comes from: back from source to source, to the one that did not receive it."""
    seen: set[str] = set()
    while host in hosts and host not in seen:
        seen.add(host)
        source = next((each.source for each in hosts[host].received if stage in each.stages), None)
        if source is None:
            break
        host = source
    return host


def _took(origin: str, stage: StageName, record: RunRecord) -> float | None:
    """Null where the origin did not build it in this run, or its own result is not there."""
    result = record.results.get(origin)
    own = result.stages.get(stage) if result else None
    if own is None or own.status not in (StageStatus.OK, StageStatus.SKIPPED):
        return None
    # What comes from a stage that was skipped there, a server compiled within its own stage, which counts by itself.
    return own.duration_s if own.status is StageStatus.OK else 0.0
