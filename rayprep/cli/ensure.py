"""`rayprep ensure`: looks, and either writes a result at once or has the work done under Ray."""

import os
from collections.abc import Mapping
from contextlib import ExitStack

from rayprep.cli.main import set_ray_environment
from rayprep.cli.request import Flags, node_request
from rayprep.host.layout import prepare_root, root_unfit
from rayprep.model.errors import RayprepError
from rayprep.model.events import Event
from rayprep.model.result import PrepResult
from rayprep.node import NodeRequest, Survey, close_result, ensure, take_survey
from rayprep.report.live import View, choose_view
from rayprep.report.session_log import SessionLog


def run(flags: Flags, *, json_lines: bool, dry_run: bool, address: str | None) -> int:
    """Returns the exit status.

    Raises:
        RayprepError: what fails before a result can be written.
    """
    environ = dict(os.environ)
    request = node_request(flags, environ)
    if dry_run:
        return _show_plan(take_survey(request, environ), json_lines=json_lines)
    prepare_root(request.layout.profiles, "profiles")
    prepare_root(request.layout.telemetry, "telemetry")
    survey = take_survey(request, environ)
    view = choose_view(json_lines=json_lines)
    if not survey.plan.needs_work:
        return _point_at(request, _without_ray(request, survey, environ, view))
    try:
        return _point_at(request, _with_ray(request, survey, view, address))
    except RayprepError as error:
        _point_at(request, close_result(request, survey, error))
        raise


def _point_at(request: NodeRequest, result: PrepResult) -> int:
    """The two lines that tools look for, last of all. Returns the exit status."""
    print(f"RESULT_JSON {request.layout.result(request.run_id)}")
    print(f"RESULT_STATUS {result.status_line}", flush=True)
    return result.exit_code


def _show_plan(survey: Survey, *, json_lines: bool) -> int:
    if json_lines:
        print(survey.plan.model_dump_json(indent=2))
    else:
        for decision in survey.plan.decisions:
            print(decision)
    return 0


def _without_ray(request: NodeRequest, survey: Survey, environ: Mapping[str, str], view: View) -> PrepResult:
    """Nothing is to be built: no Ray, no locks, no other process."""
    try:
        log = SessionLog(request.layout.session_log(request.run_id))
    except OSError as error:
        raise root_unfit(request.layout.telemetry, "telemetry", error) from None

    def emit(event: Event) -> None:
        log.record(event)
        view.show(event)

    with view:
        result = ensure(request, environ, emit, survey=survey)
    log.close()
    return result


def _with_ray(request: NodeRequest, survey: Survey, view: View, address: str | None) -> PrepResult:
    from rayprep.fleet.driver import drive
    from rayprep.fleet.runtime import RayFolder, joined_ray, local_ray

    with ExitStack() as stack:
        if address:
            return drive(request, survey, view, joined_ray(address))
        folder = stack.enter_context(RayFolder())
        set_ray_environment(folder.environment())
        return drive(request, survey, view, local_ray(folder))
