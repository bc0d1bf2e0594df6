"""The timeline of a run as geometry: a row for each host, a bar for each stage, the proof and what was received. Pure.

A host's stages may run side by side; then its row has as many lanes as it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rayprep.base.human import duration
from rayprep.base.records import Record, utc_from_timestamp
from rayprep.model.fleet.result import FleetHost
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.run_files import RunRecord
from rayprep.report.page.spans import KINDS, RESOLUTION_S, Span, spans_of

ROWS = 50
"""More hosts than these nobody compares by eye; those that tell most are drawn."""
LEFT, WIDTH = 190.0, 1060.0
"""Where the bars begin, beside the hosts' names, and where they end."""
LANE, GAP, TOP = 17.0, 5.0, 24.0
_LEAST = 4.0
"""Width of the shortest bar, so that it can be seen and pointed at."""
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
_TICKS = 8


class Bar(Record):
    kind: str
    state: str
    """`ok`, `error` and so on; `unfinished` where no end was said."""
    x: float
    y: float
    width: float
    label: str
    """As much of the kind's name as fits; may be empty."""
    title: str


class Row(Record):
    host: str
    y: float
    height: float
    bars: tuple[Bar, ...]


class Timeline(Record):
    begins: str
    """When the first bar does."""
    rows: tuple[Row, ...]
    hidden: int
    """Hosts with bars that are not drawn."""
    kinds: tuple[str, ...]
    """Those that are drawn, for the legend."""
    ticks: tuple[tuple[float, str], ...]
    height: float


def timeline_of(record: RunRecord) -> Timeline | None:
    """Null where the log says of no stage that it ran."""
    spans = spans_of(record)
    if not spans:
        return None
    shown = sorted(sorted(spans, key=lambda host: _rank(record.hosts[host], spans[host]))[:ROWS])
    shown.sort(key=lambda host: min(span.start for span in spans[host]))
    drawn = [span for host in shown for span in spans[host]]
    first, last = min(span.start for span in drawn), max(span.end for span in drawn)
    scale = _Scale(first, (WIDTH - LEFT) / max(last - first, RESOLUTION_S))
    rows: list[Row] = []
    top = TOP
    for host in shown:
        rows.append(_row(host, spans[host], top, scale))
        top += rows[-1].height + GAP
    kinds = {span.kind for span in drawn}
    return Timeline(
        begins=utc_from_timestamp(first),
        rows=tuple(rows),
        hidden=len(spans) - len(shown),
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        ticks=_ticks(max(last - first, RESOLUTION_S), scale),
        height=top,
    )


def _rank(known: FleetHost, spans: Sequence[Span]) -> tuple[bool, bool, float]:
    """Hosts that built first, then those that failed, then those that took longest."""
    failed = known.state in (HostPhase.FAILED, HostPhase.LOST)
    return (not known.built, not failed, min(span.start for span in spans) - max(span.end for span in spans))


@dataclass(frozen=True)
class _Scale:
    first: float
    per_second: float

    def x(self, moment: float) -> float:
        return round(LEFT + (moment - self.first) * self.per_second, 1)


def _row(host: str, spans: Sequence[Span], top: float, scale: _Scale) -> Row:
    bars = []
    for span in spans:
        width = max(_LEAST, round(span.took * scale.per_second, 1))
        bar = Bar(
            kind=span.kind,
            state=span.state,
            x=min(scale.x(span.start), WIDTH - width),
            y=top + span.lane * LANE,
            width=width,
            label=_label(span, width),
            title=f"{host}: {span.kind} {span.state}, {duration(span.took)}",
        )
        bars.append(bar)
    return Row(host=host, y=top, height=(1 + max(span.lane for span in spans)) * LANE, bars=tuple(bars))


def _label(span: Span, width: float) -> str:
    mark = {"error": "✗ ", "unfinished": "… "}.get(span.state, "")
    fits = int((width - 6) / 6.6)
    for text in (f"{mark}{span.kind} {duration(span.took)}", mark + span.kind, mark + span.kind[0].upper(), mark[:1]):
        if len(text) <= fits:
            return text
    return ""


def _ticks(length: float, scale: _Scale) -> tuple[tuple[float, str], ...]:
    step = next((step for step in _STEPS if length / step <= _TICKS), length / _TICKS)
    moments = [number * step for number in range(_TICKS + 1) if number * step <= length]
    return tuple((scale.x(scale.first + moment), _tick(moment)) for moment in moments)


def _tick(moment: float) -> str:
    """`45 s`, `1 min 30 s`, `2 h`: no part that is nothing."""
    parts = ((moment // 3600, "h"), (moment % 3600 // 60, "min"), (moment % 60, "s"))
    return " ".join(f"{count:g} {unit}" for count, unit in parts if count) or "0 s"
