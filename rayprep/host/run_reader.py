"""Reads back what a run has left under the telemetry root.

Nothing that these files say is followed as a path: they may come from other hosts.
"""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from rayprep.base.errors import BadRequest
from rayprep.base.file_names import is_file_name
from rayprep.base.records import R, first_problem, parse_utc, read_tolerant
from rayprep.base.sealed import SealBroken
from rayprep.base.written import parse_result
from rayprep.host.files import read_end
from rayprep.host.layout import Layout
from rayprep.model.events import Event
from rayprep.model.fleet.result import FleetResult
from rayprep.model.result import PrepResult
from rayprep.model.run_files import LogTails, RunRecord, failed_without_tail, only_host

_TAIL_LINES = 12
_NAMED = 3
_JSON = "OPTIMIZE_JSON "
_LONGEST_LINE = 1 << 20
"""Characters. What has no end is looked at in parts, none of which is an event."""
_MOST = 1 << 30
"""Characters of a log that are looked at: more than a campaign of a thousand hosts writes."""
_TS = re.compile(r'"ts":"([-0-9T:]{19}Z)"')
_PROGRESS = '"phase":"progress"'


def read_run(layout: Layout, run_id: str) -> RunRecord:
    """What the run has left so far, a fleet's where there is one.

    A host's damaged file, or a log's, is named in the record, and all others are there.

    Raises:
        BadRequest: there is no such run, or its own result is damaged.
    """
    if not is_file_name(run_id):
        raise BadRequest(f"run {run_id!r} cannot be a folder's name", hint="give the run's id, and no path")
    folder = layout.run(run_id)
    fleet_file, own_file = folder / "fleet_result.json", layout.result(run_id)
    if layout.runs.is_file(fleet_file):
        record = _read_fleet(layout, run_id, _read_or_refuse(layout, FleetResult, fleet_file))
    elif layout.runs.is_file(own_file):
        result = _read_or_refuse(layout, PrepResult, own_file)
        host = result.run.host
        record = RunRecord(run_id, None, {host: only_host(result)}, {host: result})
        record = replace(record, log_tails=_log_tails(layout, run_id, {host: result}))
    else:
        raise BadRequest(f"{folder} has neither a fleet_result.json nor a prep_result.json", hint=_hint(folder))
    return _with_events(record, layout, layout.session_log(run_id))


def _hint(folder: Path) -> str:
    try:
        runs = sorted(folder.parent.iterdir(), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return "give the --telemetry-root that the run had"
    named = [path.name for path in runs if path.is_dir() and path != folder][:_NAMED]
    return f"the latest runs there: {', '.join(named)}" if named else "give the --telemetry-root that the run had"


def _read_or_refuse(layout: Layout, kind: type[R], path: Path) -> R:
    found = _read(layout, kind, path)
    if isinstance(found, str):
        raise BadRequest(found, hint="no report can be made of it; run ensure again")
    return found


def _read(layout: Layout, kind: type[R], path: Path) -> R | str:
    """The file, or in one line what is wrong with it."""
    try:
        return parse_result(kind, layout.runs.read(path))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValidationError as error:
        return f"{path} is damaged: {first_problem(error)}"
    except SealBroken as error:
        return f"{path} is damaged: {error}"


def _read_fleet(layout: Layout, run_id: str, fleet: FleetResult) -> RunRecord:
    results: dict[str, PrepResult] = {}
    damaged = []
    for host, known in fleet.hosts.items():
        path = Layout(layout.profiles, layout.telemetry, host).result(run_id)
        if not layout.runs.is_file(path):
            # Before a host has ended it may have none. A driver away from the head has no host's at all.
            damaged += [f"{known.result} is missing below {layout.run(run_id)}"] if known.result else []
            continue
        found = _read(layout, PrepResult, path)
        if isinstance(found, str):
            damaged.append(found)
        elif found.run.invocation == fleet.run.invocation:  # else it is of an earlier run of this id
            results[host] = found
    tails = _log_tails(layout, run_id, results)
    return RunRecord(run_id, fleet, fleet.hosts, results, log_tails=tails, damaged=tuple(damaged))


def _log_tails(layout: Layout, run_id: str, results: dict[str, PrepResult]) -> LogTails:
    tails = {}
    for host, result in results.items():
        folder = Layout(layout.profiles, layout.telemetry, host if result.node else None).run(run_id)
        for stage in failed_without_tail(result):
            if lines := _tail(layout, folder / f"{stage}.log"):
                tails[host, stage] = lines
    return tails


def _tail(layout: Layout, path: Path) -> tuple[str, ...]:
    """Empty where there is no such file."""
    try:
        return tuple(read_end(layout.runs.open(path, os.O_RDONLY)).splitlines()[-_TAIL_LINES:])
    except OSError:
        return ()


def _with_events(record: RunRecord, layout: Layout, log: Path) -> RunRecord:
    try:
        events, last_ts = _events(layout, log, record.result.run.started_at)
    except OSError as error:
        why = f"{log} cannot be read: {error.strerror}"
        return replace(record, damaged=(*record.damaged, why))
    return replace(record, events=events, last_ts=last_ts)


def _events(layout: Layout, log: Path, since: str) -> tuple[tuple[Event, ...], str | None]:
    """The events from the first that is not before `since`, for an earlier run of this id may stand in the log.

    Lines of progress, which are most of it, are only asked for their time. A line that a kill has cut is left out.
    """
    events: list[Event] = []
    last_ts, left = None, _MOST
    with os.fdopen(layout.runs.open(log, os.O_RDONLY), encoding="utf-8", errors="replace") as lines:
        for line in iter(partial(lines.readline, _LONGEST_LINE), ""):
            left -= len(line)
            if left < 0:
                break
            said = _TS.search(line) if line.startswith(_JSON) else None
            if said is None or (last_ts is None and said[1] < since):
                continue
            last_ts = said[1]
            if _PROGRESS not in line:
                events += _event(line)
    return tuple(events), last_ts if last_ts and _is_utc(last_ts) else None


def _is_utc(text: str) -> bool:
    try:
        parse_utc(text)
    except ValueError:
        return False
    return True


def _event(line: str) -> list[Event]:
    try:
        return [read_tolerant(Event, line.removeprefix(_JSON))]
    except ValidationError:
        return []
