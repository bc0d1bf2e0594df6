"""The one way to a terminal: whatever the text, the lines are ours, on a terminal and in a pipe."""

import contextlib
import io
import json
import os
import pty
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.result import FleetError, FleetHost, FleetResult
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.fleet.status import FleetStatus
from rayprep.report.fleet_view import FleetLineView, LiveFleetView, fleet_table
from rayprep.report.host_view import LineView, LiveView
from rayprep.report.screen import Grid, Screen, styled, write_json, write_line
from rayprep.report.session_log import SessionLog
from tests.foreign import ALL, NASTY, UTF8, lines
from tests.model.samples import MOMENT, fleet_run

MARKUP = "[red]x[/blue] [link=file:///etc/passwd]y :skull:"


@contextlib.contextmanager
def terminal() -> Iterator[tuple[TextIO, Callable[[], bytes]]]:
    """A terminal that does not end our lines for us, and what it was sent."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with os.fdopen(theirs, "w", encoding="utf-8", closefd=True) as stream:
        yield stream, lambda: os.read(ours, 1 << 20)
    os.close(ours)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_call_is_a_line(text: str) -> None:
    stream = io.StringIO()
    write_line(text, stream)
    Screen(stream).line(text, "red")
    Screen(stream, width=200).cut_line(text)
    assert len(lines(stream.getvalue())) == 3


def test_no_markup_is_obeyed_and_no_emoji_is_put_in() -> None:
    stream = io.StringIO()
    screen, grid = Screen(stream, width=200), Grid(title=MARKUP)
    grid.column()
    grid.row(MARKUP)
    grid.row((MARKUP, "red"))
    grid.row(styled(MARKUP, (MARKUP, "red")))
    screen.grid(grid)
    screen.line(MARKUP)
    screen.cut_line(MARKUP)
    assert stream.getvalue().count(MARKUP) == 7


def test_a_line_is_not_wrapped_into_two() -> None:
    stream = io.StringIO()
    Screen(stream, width=40).line("x" * 100 + " all is well")
    assert stream.getvalue() == "x" * 100 + " all is well\n"


def test_json_is_in_the_encoding_of_the_stream() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        write_json(json.dumps({"é": ALL}, ensure_ascii=False), stream)
        assert json.loads(raw.getvalue().decode("ascii")) == {"é": ALL}


@pytest.mark.parametrize("text", UTF8.values(), ids=UTF8)
def test_no_name_forges_a_line_of_the_log(tmp_path: Path, text: str) -> None:
    log = SessionLog(tmp_path / "log")
    log.say(f"[RESET triton] removed {text}")
    warning = event("ensure", Phase.WARNING, message=text, host=text)
    log.record(warning)
    log.close()
    said = lines((tmp_path / "log").read_bytes())
    assert [line.split()[0] for line in said] == ["[RESET", "[OPTIMIZE", "OPTIMIZE_JSON"]
    assert Event.model_validate_json(said[2].removeprefix("OPTIMIZE_JSON ")) == warning


@pytest.mark.parametrize("json_lines", [True, False])
@pytest.mark.parametrize("make", [LineView, FleetLineView])
def test_an_event_is_a_line(make: Callable[..., LineView], json_lines: bool) -> None:
    stream = io.StringIO()
    view = make(stream, json_lines=json_lines)
    told = [each for each in everything_said() if each.phase is not Phase.PROGRESS]  # which a fleet shows seldom
    for each in told:
        view.show(each)
    assert len(lines(stream.getvalue())) == len(told)


def everything_said() -> list[Event]:
    """Events with foreign text wherever they have text."""
    names = {"hint": ALL, "message": ALL, "host": ALL, "slug": ALL, "holder": ALL, "reason": ALL, "status": ALL}
    ended = [event(name, phase, **names) for name in ("serve", "ensure") for phase in Phase if phase is not Phase.START]
    return [event("serve", Phase.START, settings={"model": ALL, ALL: ALL}, host=ALL), *ended]


def test_the_live_view_of_a_host_draws_nothing_of_theirs() -> None:
    with terminal() as (stream, sent):
        with LiveView(stream) as view:
            for each in everything_said():
                view.show(each)
                view.refresh()
        stream.flush()
        shown = lines(sent(), drawn=True)
    assert any("\\u202e" in line for line in shown)


def test_the_live_view_of_a_fleet_draws_nothing_of_theirs() -> None:
    with terminal() as (stream, sent):
        with LiveFleetView(stream) as view:
            for each in everything_said():
                view.show(each)
            view.update(odd_fleet())
            view.refresh()
        stream.flush()
        shown = lines(sent(), drawn=True)
    assert any("\\u202e" in line or "\\x1b" in line for line in shown)


def odd_fleet() -> FleetResult:
    error = FleetError(error_type=ErrorType.NODE_LOST, message=ALL, exit_code=10)
    hosts = {
        name: FleetHost(node_id="n", address="a", group=name, state=HostPhase.FAILED, error=error)
        for name in (*UTF8.values(), MARKUP)
    }
    return FleetResult(run=fleet_run(run_id="r"), hosts=hosts)


def test_each_host_of_a_table_has_one_name_in_it() -> None:
    status = FleetStatus(run_id=ALL, taken_at=MOMENT, result=odd_fleet())
    names = fleet_table(status).cells(0)
    assert len(names) == len(UTF8) + 1
    assert MARKUP in names
    assert all(name.isprintable() for name in names)
