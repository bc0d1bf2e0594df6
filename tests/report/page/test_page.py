"""The report of a run: what it reads, what it reckons, what it refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import escape

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.base.records import to_json
from rayprep.base.text import printable
from rayprep.cli import report as command
from rayprep.host.run_reader import read_run
from rayprep.model.events import Event, Phase
from rayprep.model.fleet.result import FleetError
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.stages import StageName, StageStatus
from rayprep.report.page.model import Page, page_of
from rayprep.report.page.page import render
from rayprep.report.page.timeline import ROWS, WIDTH
from tests.foreign import ALL, lines
from tests.model.samples import MOMENT
from tests.report.left_runs import (
    BUILT_S,
    GEMM_WARNING,
    HINT,
    LOG_TAIL,
    LeftRun,
    at,
    broken,
    fleet,
    proof,
    single,
    spans,
)

HOSTS = tuple(f"gpu-{number}" for number in range(8))


def report(telemetry: Path, *args: str, run: str = "run-1") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rayprep", "report", run, "--telemetry-root", str(telemetry), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def refused(telemetry: Path, run: str = "run-1", output: Path | None = None) -> str:
    with pytest.raises(BadRequest) as caught:
        command.write_page(run, str(telemetry), output)
    return caught.value.line


def page(left: LeftRun) -> Page:
    return page_of(read_run(left.layout, "run-1"))


def html(left: LeftRun) -> str:
    return render(read_run(left.layout, "run-1"))


def test_the_page_lies_beside_the_result(tmp_path: Path) -> None:
    left = single(tmp_path).write()
    done = report(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{left.folder / 'report.html'}\n"
    assert (left.folder / "report.html").read_text(encoding="utf-8") == html(left)


def test_the_page_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS).write()
    elsewhere = tmp_path / "page.html"
    assert report(tmp_path, "--output", str(elsewhere)).stdout == f"{elsewhere}\n"
    assert "gpu-7" in elsewhere.read_text(encoding="utf-8")
    assert not (left.folder / "report.html").exists()


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    single(tmp_path).write()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    command.write_page("run-1", str(tmp_path), pipe)
    assert "</html>" in reader.communicate(timeout=10)[0]
    assert pipe.is_fifo()


def _garbage(left: LeftRun) -> None:
    (left.folder / "fleet_result.json").write_bytes(b'{"schema_version": "1", "st')


def _nothing(left: LeftRun) -> None:
    (left.folder / "fleet_result.json").unlink()


def _of_another_form(left: LeftRun) -> None:
    (left.folder / "fleet_result.json").write_text('{"status": "splendid"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_garbage, "fleet_result.json is damaged: Invalid JSON"),
        (_nothing, "has neither a fleet_result.json nor a prep_result.json"),
        (_of_another_form, "fleet_result.json is damaged: status: Input should be 'ok', 'error' or 'partial'"),
    ],
)
def test_without_the_runs_own_result_there_is_no_page(
    tmp_path: Path, harm: Callable[[LeftRun], None], why: str
) -> None:
    left = fleet(tmp_path, HOSTS).write()
    harm(left)
    assert why in refused(tmp_path)
    assert not (left.folder / "report.html").exists()


def test_a_wrong_run_is_told_which_there_are(tmp_path: Path) -> None:
    single(tmp_path).write()
    assert refused(tmp_path, "run-2").endswith("(the latest runs there: run-1)")


@pytest.mark.parametrize("run", ["../run-1", "", "..", "a/b"])
def test_a_run_is_a_name_and_no_path(tmp_path: Path, run: str) -> None:
    assert "cannot be a folder's name" in refused(tmp_path, run)


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    single(tmp_path).write()
    why = refused(tmp_path, output=tmp_path / "no" / "page.html")
    assert why.endswith("no/page.html cannot be written: No such file or directory (choose another --output)")


def test_the_others_are_shown_where_a_hosts_file_is_damaged(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS).write()
    left.host_file("gpu-1").write_text("{", encoding="utf-8")
    left.host_file("gpu-2").unlink()
    done = report(tmp_path)
    assert done.returncode == 2
    assert done.stdout == f"{left.folder / 'report.html'}\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rayprep: error [BadRequest]: ")
    assert "gpu-1/prep_result.json is damaged: Invalid JSON" in done.stderr
    assert ", and 1 more such file (the page shows what the other files say)" in done.stderr
    shown = (left.folder / "report.html").read_text(encoding="utf-8")
    assert "hosts/gpu-2/prep_result.json is missing below" in shown


def test_without_a_log_there_is_no_timeline(tmp_path: Path) -> None:
    left = single(tmp_path).write()
    left.layout.session_log("run-1").unlink()
    assert "logs/run-1.log cannot be read: No such file or directory" in refused(tmp_path)
    assert page(left).timeline is None
    assert page(left).builds


def test_failures_of_one_kind_are_told_once(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS, failed=HOSTS[3:5], lost=HOSTS[6:7]).write()
    alike, alone = page(left).failures
    assert alike.hosts == ("gpu-3", "gpu-4")
    assert (alike.first.error_type, alike.first.hint) == (ErrorType.TOOLCHAIN_MISMATCH, HINT)
    assert alike.first.log_tail == LOG_TAIL
    assert alone.hosts == ("gpu-6",)
    assert (alone.first.message, alone.first.hint) == ("gpu-6 has not answered for 60 s (mend it)", "")


def test_what_failed_the_run_itself_comes_first(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS, failed=HOSTS[3:5])
    error = FleetError(error_type=ErrorType.INTERRUPTED, message="interrupted", exit_code=130)
    assert left.fleet is not None
    left.fleet = left.fleet.model_copy(update={"errors": (error,)})
    first, second = page(left.write()).failures
    assert (first.hosts, first.first.message) == ((), "interrupted")
    assert first.first.hint == "run ensure again; it goes on where it stopped"
    assert second.hosts == ("gpu-3", "gpu-4")


def test_the_log_of_a_stage_is_read_where_the_result_has_none_of_it(tmp_path: Path) -> None:
    left = single(tmp_path)
    stages = {**left.results["host-1"].stages, StageName.SERVE: broken(StageName.SERVE, "host-1", tail=())}
    verify = proof(status="error", error_type="verify_failed", message="the server made 1 new file (triton: norm)")
    changes = {"stages": stages, "verify": verify, "status": RunStatus.PARTIAL}
    left.results["host-1"] = left.results["host-1"].model_copy(update=changes)
    left.write()
    (left.folder / "serve.log").write_text("".join(f"line {number}\n" for number in range(5000)), encoding="utf-8")
    (left.folder / "verify.log").write_bytes(b"half a \xff character\n")
    serve, verified = page(left).failures
    assert serve.first.log_tail[-1] == "line 4999"
    assert len(serve.first.log_tail) == 12
    assert (verified.first.where, verified.first.log_tail) == ("verify", ("half a � character",))
    assert verified.first.hint == "read which files are new; run again with --rebuild for the stage"


def test_no_path_in_a_file_is_followed(tmp_path: Path) -> None:
    """A host's name and its result's path come from elsewhere, and what they lead to must not get onto the page."""
    (tmp_path / "prep_result.json").write_text(to_json(single(tmp_path).results["host-1"]), encoding="utf-8")
    wild = ("..", "../../..", str(tmp_path), "", "nul\0", "x" * 5000)
    left = fleet(tmp_path / "t", ("gpu-0", *wild))
    left.results = {"gpu-0": left.results["gpu-0"]}
    record = read_run(left.write().layout, "run-1")
    assert list(record.results) == ["gpu-0"]
    assert len(record.damaged) == len(wild)
    assert "tiny-dense" not in render(record)


def test_an_earlier_run_of_the_same_id_is_left_out(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS[:3])
    left.events += [event.model_copy(update={"ts": at(-500)}) for event in spans("inductor", 0, 7, "gpu-1")]
    stale = left.results["gpu-1"]
    left.results["gpu-1"] = stale.model_copy(update={"run": stale.run.model_copy(update={"invocation": "before"})})
    shown = page(left.write())
    assert shown.timeline is not None
    assert "inductor" not in shown.timeline.kinds
    assert [view.result is None for view in shown.hosts] == [False, True, False]


def test_a_host_that_a_second_attempt_made_good_has_not_failed(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS, failed=("gpu-3",))
    assert left.fleet is not None
    good = left.fleet.hosts["gpu-3"].model_copy(update={"state": HostPhase.VERIFIED, "attempts": 2})
    left.fleet = left.fleet.model_copy(update={"hosts": {**left.fleet.hosts, "gpu-3": good}})
    assert page(left.write()).failures == ()


def test_what_was_spared_is_what_the_builder_took(tmp_path: Path) -> None:
    spared = page(fleet(tmp_path, HOSTS).write()).spared
    assert spared.by_host == dict.fromkeys(HOSTS[1:], sum(BUILT_S.values()))  # gpu-3 has it from gpu-1
    assert (spared.receiving_s, spared.unknown) == (7 * 2.5, 0)


def test_what_an_earlier_run_built_is_not_counted_as_spared(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS[:3])
    left.results["gpu-0"] = _noop(left.results["gpu-0"], StageName.FLASHINFER)
    spared = page(left.write()).spared
    assert spared.by_host["gpu-2"] == BUILT_S[StageName.DEEP_GEMM] + BUILT_S[StageName.SERVE]
    assert spared.unknown == 2
    assert "Not counted: 2 received stages" in html(left)


def _noop(result: PrepResult, stage: StageName) -> PrepResult:
    stages = {**result.stages, stage: result.stages[stage].model_copy(update={"status": StageStatus.NOOP})}
    return result.model_copy(update={"stages": stages})


def test_hosts_that_sent_to_each_other_end_the_search(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS[:4])
    assert left.fleet is not None
    two = {host: left.fleet.hosts[host] for host in ("gpu-1", "gpu-3")}
    two["gpu-1"] = two["gpu-1"].model_copy(
        update={"received": (two["gpu-3"].received[0].model_copy(update={"source": "gpu-3"}),)}
    )
    left.fleet = left.fleet.model_copy(update={"hosts": two})
    assert page(left.write()).spared.total_s == 0


def test_stages_side_by_side_have_lanes_of_their_own(tmp_path: Path) -> None:
    timeline = page(single(tmp_path).write()).timeline
    assert timeline is not None
    (row,) = timeline.rows
    lanes = {bar.kind: (bar.y - row.y) / 17 for bar in row.bars}
    assert lanes == {"deep_gemm": 0, "flashinfer": 1, "serve": 0, "verify": 0}
    begins = [bar.x for bar in row.bars]
    assert begins == sorted(begins)
    assert max(bar.x + bar.width for bar in row.bars) == WIDTH
    assert timeline.ticks[:3] == ((190.0, "0 s"), (393.9, "30 s"), (597.8, "1 min"))


def test_a_stage_whose_end_nobody_heard_lasts_as_long_as_the_host_was_heard(tmp_path: Path) -> None:
    shown = page(single(tmp_path, ended=False).write())
    assert shown.timeline is not None
    going = shown.timeline.rows[0].bars[-1]
    assert (going.state, going.title) == ("unfinished", "host-1: flashinfer unfinished, 1 min 00 s")
    assert "last heard of at 2025-10-09T01:13:03Z" in shown.unfinished


def test_a_fleet_that_has_just_begun(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS[:1])
    assert left.fleet is not None
    run = left.fleet.run.model_copy(update={"finished_at": None})
    left.fleet = left.fleet.model_copy(update={"run": run, "hosts": {}, "groups": {}, "waves": (), "odd": ()})
    left.results, left.events = {}, []
    assert "No host has been looked at." in html(left.write())


def test_lines_that_a_kill_has_cut_are_left_out(tmp_path: Path) -> None:
    left = single(tmp_path).write()
    with left.layout.session_log("run-1").open("ab") as log:
        log.write(b'OPTIMIZE_JSON {"name":"ser\nOPTIMIZE_JSON {"ts":"2025-99-99T00:00:00Z"}\n\xff\nOPTIMIZE_JSON {"na')
    timeline = page(left).timeline
    assert timeline is not None
    assert len(timeline.rows[0].bars) == 4


def test_of_many_hosts_the_builder_and_the_failed_ones_are_drawn(tmp_path: Path) -> None:
    names = [f"gpu-{number:03}" for number in range(200)]
    timeline = page(fleet(tmp_path, names, failed=names[150:160]).write()).timeline
    assert timeline is not None
    drawn = {row.host for row in timeline.rows}
    assert len(drawn) == ROWS
    assert timeline.hidden == 200 - ROWS
    assert {names[0], *names[150:160]} <= drawn


def test_warnings_once_with_their_hosts_and_without_what_is_shown_elsewhere(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS, lost=("gpu-6",))
    assert left.fleet is not None
    odd = Event(name="ensure", phase=Phase.WARNING, ts=MOMENT, message=f"{left.fleet.odd[0]} (for information)")
    left.events.append(odd)
    notes = {note.message: note.hosts for note in page(left.write()).warnings}
    assert notes == {GEMM_WARNING: ("gpu-0",), "gpu-6 was lost: ActorDied": ("gpu-6",)}


def test_numbers_that_no_run_has(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTS[:3]).write()
    path = left.folder / "fleet_result.json"
    text = (
        path.read_text(encoding="utf-8")
        .replace("131.0", "NaN")
        .replace("2.5", "1e999")
        .replace('"bytes": ', '"bytes": 9')
    )
    path.write_text(text.replace('"bytes": 9', f'"bytes": {"9" * 400}'), encoding="utf-8")
    log = left.layout.session_log("run-1")
    log.write_text(log.read_text(encoding="utf-8").replace("35.0", "-1e300"), encoding="utf-8")
    assert "</html>" in html(left)


def test_nothing_on_the_page_leads_elsewhere(tmp_path: Path) -> None:
    text = html(fleet(tmp_path, HOSTS, failed=HOSTS[3:5]).write())
    assert re.findall(r"https?:|//|@import|url\((?!#)|<script|<link (?!rel=\"icon\" href=\"data:)", text) == []


def test_every_line_of_the_page_prints(tmp_path: Path) -> None:
    left = fleet(tmp_path, ["h1", "h2", ALL], failed={ALL})
    left.events.append(Event(name="ensure", phase=Phase.WARNING, ts=at(90), host=ALL, message=ALL))
    stage = left.results[ALL].stages[StageName.FLASHINFER]
    error = stage.errors[0].model_copy(update={"message": ALL, "hint": ALL, "log_tail": (ALL, "\ttabbed")})
    left.results[ALL].stages[StageName.FLASHINFER] = stage.model_copy(update={"errors": (error,)})
    text = html(left.write())
    lines(text)
    assert text.count("\\u202egpj.exe") > 10
    assert f"<pre>{escape(printable(ALL.expandtabs()))}\n        tabbed\n</pre>" in text


def test_help_does_not_load_the_template_engine() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "rayprep", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "  report " in done.stdout
    assert not re.search(r"jinja2|rich|pydantic|rayprep\.(report\.page|host|model)", done.stderr)


def test_the_fleets_file_is_one_that_a_run_writes(tmp_path: Path) -> None:
    """The samples fit the schema, so that the page is tested on what there really is."""
    import jsonschema

    from rayprep.cli.schema import schema

    left = fleet(tmp_path, HOSTS, failed=HOSTS[3:5], lost=HOSTS[6:7]).write()
    document = json.loads((left.folder / "fleet_result.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema("fleet_result"), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("what", ["device", "pipe", "link", "folder"])
def test_a_page_goes_nowhere_but_into_the_runs_folder(tmp_path: Path, what: str) -> None:
    left = single(tmp_path).write()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "report.html").write_text("precious", encoding="utf-8")
    folder = left.layout.run("run-1")
    page = folder / "report.html"
    if what == "folder":
        folder.rename(tmp_path / "kept")
        folder.symlink_to(victim)
    elif what == "pipe":
        os.mkfifo(page)
    else:
        page.symlink_to("/dev/full" if what == "device" else victim / "report.html")
    if what == "folder":
        with pytest.raises(HostUnfit, match="is not used: it is a link"):
            command.write_page("run-1", str(left.layout.telemetry), None)
    else:
        command.write_page("run-1", str(left.layout.telemetry), None)
        assert page.is_file()
        assert not page.is_symlink()
    assert (victim / "report.html").read_text(encoding="utf-8") == "precious"
