"""`rayprep ensure`: looks, and either writes a result at once or has the work done under Ray."""

import contextlib
import gc
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from rayprep.cli.main import say_error, set_ray_environment
from rayprep.cli.request import Flags, node_request
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import prepare_root, root_unfit
from rayprep.host.locks import acquire
from rayprep.model.errors import ErrorType, HostUnfit, Interrupted, RayprepError
from rayprep.model.events import Event, Phase, event
from rayprep.model.result import PrepResult
from rayprep.node import NodeRequest, Survey, close_result, ensure, take_survey
from rayprep.report.live import View, choose_view
from rayprep.report.session_log import SessionLog
from rayprep.report.tracing import traced


def run(flags: Flags, *, json_lines: bool, dry_run: bool, address: str | None, debug: bool) -> int:
    """Returns the exit status.

    Raises:
        RayprepError: what fails before a result can be written.
    """
    environ = dict(os.environ)
    request = node_request(flags, environ)
    if dry_run:
        return _show_plan(take_survey(request, environ), json_lines=json_lines)
    with Interrupts() as interrupts, ExitStack() as stack:
        prepare_root(request.layout.profiles, "profiles")
        prepare_root(request.layout.telemetry, "telemetry")
        survey = take_survey(request, environ)
        if request.verify_only and not survey.plan.verify.run:
            raise HostUnfit("a proof needs a GPU: without one no server starts", hint="run it on a host with a GPU")
        lock = request.layout.run_lock(request.run_id)
        stack.enter_context(acquire([lock], request.run_id, 0, lambda *_: None, lambda: interrupts.asked))
        view = traced(choose_view(json_lines=json_lines), request.resolved.spec.tracing, request.run_id)
        result = _Run(request, survey, environ, view, interrupts, address, debug).go()
        print(f"RESULT_JSON {request.layout.result(request.run_id)}")
        print(f"RESULT_STATUS {result.status_line}", flush=True)
        return result.exit_code


def _show_plan(survey: Survey, *, json_lines: bool) -> int:
    if json_lines:
        print(survey.plan.model_dump_json(indent=2))
    else:
        for decision in survey.plan.decisions:
            print(decision)
        print(survey.plan.verify)
    return 0


@dataclass(frozen=True)
class _Run:
    """One run from the look at the host to a result that is written, whatever happens."""

    request: NodeRequest
    survey: Survey
    environ: Mapping[str, str]
    view: View
    interrupts: Interrupts
    address: str | None
    debug: bool

    def go(self) -> PrepResult:
        with self.view:
            try:
                return self._with_ray() if self.survey.plan.needs_work else self._without_ray()
            except (KeyboardInterrupt, SystemExit):  # the latter is how Ray takes SIGTERM while it starts
                return self._close(Interrupted())
            except RayprepError as error:
                return self._fail(error)
            except Exception as error:
                if self.debug:
                    raise
                return self._fail(RayprepError(f"{type(error).__name__}: {error}", error_type=ErrorType.INTERNAL_ERROR))

    def _fail(self, error: RayprepError) -> PrepResult:
        result = self._close(error)
        if result.errors:  # none where the agent had written its last before it died
            say_error(error)
        return result

    def _without_ray(self) -> PrepResult:
        """Nothing is to be built: no Ray, no locks, no other process."""
        log = self._log()

        def emit(event: Event) -> None:
            log.record(event)
            self.view.show(event)

        result = ensure(self.request, self.environ, emit, survey=self.survey)
        log.close()
        return result

    def _with_ray(self) -> PrepResult:
        from rayprep.fleet.driver import drive
        from rayprep.fleet.runtime import RayFolder, joined_ray, local_ray

        gc.enable()  # a driver may live for hours
        with ExitStack() as stack:
            if self.address:
                return drive(self.request, self.survey, self.view, self.interrupts, joined_ray(self.address))
            folder = stack.enter_context(RayFolder())
            set_ray_environment(folder.environment())
            return drive(self.request, self.survey, self.view, self.interrupts, local_ray(folder))

    def _close(self, error: RayprepError) -> PrepResult:
        """Writes the end that the agent could not write, and says it."""
        result = close_result(self.request, self.survey, error)
        what = {"error_type": error.error_type, "message": error.message} if result.errors else {}
        said = event("ensure", Phase.END, status=result.status.value, **what)
        with contextlib.suppress(RayprepError, OSError):
            self._log().record(said)
        self.view.show(said)
        return result

    def _log(self) -> SessionLog:
        try:
            return SessionLog(self.request.layout.session_log(self.request.run_id))
        except OSError as error:
            raise root_unfit(self.request.layout.telemetry, "telemetry", error) from None
