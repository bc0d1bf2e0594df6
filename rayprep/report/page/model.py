"""What the report page of a run shows, section by section: pure, and free of any markup."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from rayprep.base.records import Record
from rayprep.model.events import Phase
from rayprep.model.fleet.odd_hosts import Oddity
from rayprep.model.fleet.result import FleetHost
from rayprep.model.fleet.rollout import WORST_FIRST, HostPhase
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.run_files import RunRecord
from rayprep.report.page.failures import Failure, FailureGroup, failures_of, grouped, host_failures
from rayprep.report.page.shipments import (
    Build,
    Shipment,
    Source,
    Spared,
    builds_of,
    shipments_of,
    sources_of,
    spared_by,
)
from rayprep.report.page.summary import Facts, endings_of, facts_of, unfinished, versions_of
from rayprep.report.page.timeline import Timeline, timeline_of


class Note(Record):
    """A warning, with the hosts that gave it; none where it is of the run as a whole."""

    message: str
    hosts: tuple[str, ...]


class Group(Record):
    """Hosts whose artifacts are interchangeable, and those of them that share files."""

    name: str
    hosts: tuple[str, ...]
    stores: int
    shared: tuple[tuple[str, tuple[str, ...]], ...]
    """Stores of more than one host."""


class HostView(Record):
    """All that is known of one host."""

    name: str
    known: FleetHost
    result: PrepResult | None
    failures: tuple[Failure, ...]
    spared_s: float


class Page(Record):
    """The whole page."""

    run_id: str
    status: RunStatus
    unfinished: str
    facts: Facts
    endings: Facts
    versions: Facts
    states: tuple[tuple[HostPhase, int], ...]
    damaged: tuple[str, ...]
    failures: tuple[FailureGroup, ...]
    timeline: Timeline | None
    is_fleet: bool
    builds: tuple[Build, ...]
    sources: tuple[Source, ...]
    shipments: tuple[Shipment, ...]
    spared: Spared
    odd: tuple[Oddity, ...]
    groups: tuple[Group, ...]
    warnings: tuple[Note, ...]
    hosts: tuple[HostView, ...]
    """Failures first."""


def page_of(record: RunRecord) -> Page:
    fleet = record.fleet
    spared, shipments, failures = spared_by(record), shipments_of(record.hosts), failures_of(record)
    counts = Counter(known.state for known in record.hosts.values())
    return Page(
        run_id=record.run_id,
        status=record.result.status,
        unfinished=unfinished(record),
        facts=facts_of(record, spared),
        endings=endings_of(record),
        versions=versions_of(record),
        states=tuple((state, counts[state]) for state in WORST_FIRST if counts[state]),
        damaged=record.damaged,
        failures=grouped(failures),
        timeline=timeline_of(record),
        is_fleet=fleet is not None,
        builds=builds_of(record),
        sources=sources_of(shipments),
        shipments=shipments,
        spared=spared,
        odd=fleet.odd if fleet else (),
        groups=_groups(record),
        warnings=_warnings(record, _shown_elsewhere(record, failures)),
        hosts=_hosts(record, spared),
    )


def _groups(record: RunRecord) -> tuple[Group, ...]:
    groups = record.fleet.groups if record.fleet else {}
    return tuple(
        Group(name=name, hosts=group.hosts, stores=group.stores, shared=_shared(group.hosts, record))
        for name, group in groups.items()
    )


def _shared(hosts: Iterable[str], record: RunRecord) -> tuple[tuple[str, tuple[str, ...]], ...]:
    by_store: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        if (known := record.hosts.get(host)) and known.store:
            by_store[known.store].append(host)
    return tuple((store, tuple(mates)) for store, mates in by_store.items() if len(mates) > 1)


def _shown_elsewhere(record: RunRecord, failures: Iterable[Failure]) -> tuple[str, ...]:
    fleet = record.fleet
    said = [*map(str, fleet.odd), fleet.stopped] if fleet else []
    return tuple(text for text in (*said, *(each.message for each in failures)) if text)


def _warnings(record: RunRecord, shown: tuple[str, ...]) -> tuple[Note, ...]:
    """Of the results, and those that only the log has; each once, with all its hosts.

    Args:
        shown: how warnings begin that another section shows better.
    """
    said: dict[str, dict[str, None]] = {message: {} for message in (record.fleet.warnings if record.fleet else ())}
    for host, known in record.hosts.items():
        result = record.results.get(host)
        own = [*known.warnings, *(result.warnings if result else ())]
        own += [each for stage in (result.stages.values() if result else ()) for each in stage.warnings]
        own += result.verify.warnings if result and result.verify else ()
        for message in own:
            said.setdefault(message, {})[host] = None
    for each in record.events:
        if each.phase is Phase.WARNING and each.message and not each.message.startswith(shown):
            said.setdefault(each.message, {}).update({each.host: None} if each.host else {})
    return tuple(Note(message=message, hosts=tuple(hosts)) for message, hosts in said.items())


def _hosts(record: RunRecord, spared: Spared) -> tuple[HostView, ...]:
    views = [
        HostView(
            name=host,
            known=known,
            result=record.results.get(host),
            failures=tuple(host_failures(host, known, record.results.get(host), record.log_tails)),
            spared_s=spared.by_host.get(host, 0.0),
        )
        for host, known in record.hosts.items()
    ]
    return tuple(sorted(views, key=lambda view: (WORST_FIRST.index(view.known.state), view.name)))
