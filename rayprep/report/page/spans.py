"""When each host did what, from the events of its run: pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rayprep.base.human import seconds
from rayprep.base.records import parse_utc
from rayprep.model.events import Event, Phase
from rayprep.model.fleet.result import FleetHost
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.proof import VERIFY
from rayprep.model.run_files import RECEIVE, RunRecord
from rayprep.model.stages import StageName

KINDS = (*(stage.value for stage in StageName), RECEIVE, VERIFY)
RESOLUTION_S = 1.0
"""Of an event's time: what ends within the second in which the next begins does not overlap it."""


@dataclass
class Span:
    """One stage of one host; times in seconds since the epoch."""

    kind: str
    start: float
    end: float
    state: str = "unfinished"
    lane: int = 0

    @property
    def took(self) -> float:
        return self.end - self.start


def spans_of(record: RunRecord) -> dict[str, list[Span]]:
    """Host -> what it did, by time."""
    only = next(iter(record.hosts)) if record.fleet is None else None
    said: dict[str, list[Event]] = defaultdict(list)
    for each in record.events:
        host = each.host or only
        if host in record.hosts:
            said[host].append(each)
    now = _seconds_of(record.last_ts) if record.last_ts else 0.0
    spans = {host: _of_host(events, record.hosts[host], now) for host, events in said.items()}
    return {host: _in_lanes(each) for host, each in spans.items() if each}


def _of_host(events: Iterable[Event], known: FleetHost, now: float) -> list[Span]:
    done: list[Span] = []
    going: dict[str, Span] = {}
    last = 0.0
    for each in events:
        moment = _seconds_of(each.ts)
        if each.phase is Phase.START and each.name in KINDS:
            if cut := going.pop(each.name, None):  # an attempt whose end nobody heard
                done.append(_ended(cut, last))
            going[each.name] = Span(each.name, moment, moment)
        elif each.phase is Phase.END and (each.name in going or (each.name in KINDS and seconds(each.duration_s))):
            done.append(_finished(each, going.pop(each.name, None), moment))
        last = moment
    # What a host still does has lasted until now; what was cut short, no longer than the host was heard.
    until = now if known.state is HostPhase.RUNNING else last
    return done + [_ended(span, until) for span in going.values()]


def _ended(span: Span, moment: float) -> Span:
    span.end = max(span.start, moment)
    return span


def _finished(end: Event, span: Span | None, moment: float) -> Span:
    """An event's time is cut to the second; how long the stage took is exact."""
    took = seconds(end.duration_s)
    span = span or Span(end.name, moment - took, moment)
    span.end = span.start + took if took else max(span.start, moment)
    span.state = end.status or "ended"
    return span


def _in_lanes(spans: list[Span]) -> list[Span]:
    """Spans that overlap get lanes of their own."""
    free: list[float] = []
    spans.sort(key=lambda span: span.start)
    for span in spans:
        fitting = (lane for lane, end in enumerate(free) if end - span.start <= RESOLUTION_S)
        span.lane = next(fitting, len(free))
        if span.lane == len(free):
            free.append(span.start)
        late = max(0.0, free[span.lane] - span.start)
        span.start, span.end = span.start + late, span.end + late
        free[span.lane] = span.end
    return spans


def _seconds_of(ts: str) -> float:
    return parse_utc(ts).timestamp()
