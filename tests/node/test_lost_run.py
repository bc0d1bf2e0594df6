"""The result of a run whose agent is gone: its own and no other's, and true."""

import os

import pytest

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted
from rayprep.base.records import utc_now
from rayprep.base.written import parse_result
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.spec import resolve
from rayprep.model.stages import StageName, StageStatus
from rayprep.node import NodeRequest, close_result, ensure, take_survey
from rayprep.node.lost_run import lost
from rayprep.node.run import _NodeRun
from rayprep.store.markers import Marker, write_marker
from tests.conftest import Roots

ENVIRON = dict(os.environ)


def request(roots: Roots, run_id: str = "run", **flags: object) -> NodeRequest:
    roots.profiles.mkdir(exist_ok=True)
    roots.telemetry.mkdir(exist_ok=True)
    return NodeRequest(
        resolved=resolve({"model": "tiny-dense", "device": "cpu", **flags}),
        run_id=run_id,
        profiles_root=str(roots.profiles),
        telemetry_root=str(roots.telemetry),
    )


def on_disk(asked: NodeRequest) -> PrepResult:
    return parse_result(PrepResult, asked.layout.result(asked.run_id).read_bytes())


def test_a_run_that_never_began(roots: Roots) -> None:
    asked = request(roots)
    error = HostUnfit("Ray does not start", error_type=ErrorType.RAY_UNAVAILABLE)
    result = close_result(asked, take_survey(asked, ENVIRON), error)
    assert on_disk(asked) == result
    assert (result.status, result.exit_code) == (RunStatus.ERROR, 3)
    assert list(result.stages) == list(StageName)
    assert {stage.status for stage in result.stages.values()} == {StageStatus.SKIPPED}


def test_a_run_that_was_interrupted_early_is_partial(roots: Roots) -> None:
    asked = request(roots)
    result = close_result(asked, take_survey(asked, ENVIRON), Interrupted())
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 130)


@pytest.mark.parametrize("finished", [True, False])
def test_an_earlier_run_of_the_same_id_becomes_history(roots: Roots, finished: bool) -> None:
    skips = (StageName.DEEP_GEMM,)
    earlier, later = request(roots, selected=skips), request(roots, selected=skips)
    survey = take_survey(earlier, ENVIRON)
    if finished:
        ensure(earlier, ENVIRON, lambda _: None, survey=survey)
    else:
        _NodeRun(earlier, ENVIRON, lambda _: None, lambda: False, survey)
    result = close_result(later, survey, lost())
    assert result.run.invocation == later.invocation
    assert on_disk(later) == result
    kept = later.layout.run("run") / "history" / "prep_result.1.json"
    assert parse_result(PrepResult, kept.read_bytes()).run.invocation == earlier.invocation


def test_every_stage_that_ran_at_once_has_failed(roots: Roots) -> None:
    asked = request(roots)
    survey = take_survey(asked, ENVIRON)
    _NodeRun(asked, ENVIRON, lambda _: None, lambda: False, survey)
    running = (StageName.DEEP_GEMM, StageName.FLASHINFER)
    for stage, invocation in (*((stage, asked.invocation) for stage in running), (StageName.SERVE, "another run")):
        marker = Marker(owner_pid=1, started_at=utc_now(), run_id="run", invocation=invocation, host="here")
        write_marker(survey.layout, survey.model.slug, stage, marker)
    result = close_result(asked, survey, lost())
    assert on_disk(asked) == result
    failed = [stage for stage, each in result.stages.items() if each.status is StageStatus.ERROR]
    assert tuple(failed) == running
    assert [(each.stage, each.error_type) for each in result.errors] == [(s, ErrorType.NODE_LOST) for s in running]
    assert (result.status, result.exit_code) == (RunStatus.ERROR, 10)


def test_an_agent_that_died_after_its_last_word_is_believed(roots: Roots) -> None:
    asked = request(roots, selected=(StageName.DEEP_GEMM,))
    survey = take_survey(asked, ENVIRON)
    done = ensure(asked, ENVIRON, lambda _: None, survey=survey)
    assert close_result(asked, survey, lost()) == done == on_disk(asked)


def test_no_key_of_the_users_is_written_down(roots: Roots) -> None:
    args = ("--api-key=sk-1234", "--admin-api-key", "sk-5678", "--context-length", "8192")
    asked = request(roots, selected=(StageName.DEEP_GEMM,), server_args=args)
    ensure(asked, ENVIRON, lambda _: None, survey=take_survey(asked, ENVIRON))
    text = asked.layout.result("run").read_text(encoding="utf-8")
    assert "sk-" not in text
    assert on_disk(asked).run.settings.server_args == ("--api-key=***", "--admin-api-key=***", "--context-length=8192")


def test_a_result_that_says_itself_that_it_is_ok_is_not_believed(roots: Roots) -> None:
    """Of a run whose agent has not said that it is over: others can write to the telemetry root."""
    asked = request(roots, selected=(StageName.DEEP_GEMM,))
    survey = take_survey(asked, ENVIRON)
    done = ensure(asked, ENVIRON, lambda _: None, survey=survey)
    assert done.status is RunStatus.OK
    assert close_result(asked, survey, lost()) == done
    closed = close_result(asked, survey, lost(), ended=False)
    assert closed.status is not RunStatus.OK
    assert closed.errors[-1].error_type is ErrorType.NODE_LOST
    assert on_disk(asked) == closed
