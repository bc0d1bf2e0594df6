"""`rayprep ensure`: looks, and either writes a result at once or has the work done under Ray."""

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rayprep.base.errors import ErrorType, Interrupted, RayprepError
from rayprep.cli import output
from rayprep.cli.campaign import run_each
from rayprep.cli.explain import NOT_ASKED, look_at_each, print_plans
from rayprep.cli.failures import say
from rayprep.cli.request import Flags, Requests, node_requests
from rayprep.cli.reusable import Kept
from rayprep.fleet.messages import HostJob
from rayprep.fleet.runtime.attached_process import RayProcess, leave_nothing
from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT, RayFolder
from rayprep.host.environment import for_ray
from rayprep.host.interrupts import Interrupts
from rayprep.host.layout import only_readable, prepare_root, root_unfit
from rayprep.host.locks import acquire_run
from rayprep.model.events import Event, Phase, event, run_end
from rayprep.model.metrics import host_samples, state_samples
from rayprep.model.result import PrepResult
from rayprep.model.run_files import only_host
from rayprep.node import NodeRequest, Survey, close_result, ensure, take_survey
from rayprep.node.inventory import Asking, may_ask
from rayprep.report.host_view import View, choose_view
from rayprep.report.metrics_file import add_to_metrics_file
from rayprep.report.session_log import SessionLog
from rayprep.report.traces import traced


def run(flags: Flags, *, json_lines: bool, dry_run: bool, address: str | None, debug: bool) -> int:
    """Returns the exit status.

    Raises:
        RayprepError: what fails before a result can be written.
    """
    environ = dict(os.environ)
    requests = node_requests(flags, environ)
    if dry_run:
        return _show_plans(requests, environ, json_lines=json_lines)
    with Interrupts() as interrupts, ExitStack() as stack:
        ray = stack.enter_context(Kept(lambda: _attached(address, interrupts, debug=debug)))

        def one(request: NodeRequest) -> PrepResult:
            view = traced(choose_view(json_lines=json_lines), request.resolved.spec.tracing, request.run_id)
            return _run_one(request, environ, view, interrupts, ray, debug=debug)

        return run_each(requests, interrupts, one, json_lines=json_lines)


def _run_one(
    request: NodeRequest,
    environ: Mapping[str, str],
    view: View,
    interrupts: Interrupts,
    ray: Kept[RayProcess],
    *,
    debug: bool,
) -> PrepResult:
    profiles = request.layout.profiles
    if not only_readable(profiles):
        prepare_root(profiles, "profiles")
    prepare_root(request.layout.telemetry, "telemetry")
    request.layout.refuse_strange_runs(request.run_id)
    survey = take_survey(request, environ)
    if survey.plan.needs_work:  # where nothing is to be done, whoever may look may ask
        prepare_root(profiles, "profiles")
    lock = request.layout.run_lock(request.run_id)
    with acquire_run(lock, request.run_id, lambda: interrupts.asked, request.layout.runs):
        result = _Run(request, survey, environ, _Heard(view), ray, interrupts, debug).go()
        output.for_programs(f"RESULT_JSON {request.layout.result(request.run_id)}")
        output.for_programs(f"RESULT_STATUS {result.status_line}")
        return result


@contextlib.contextmanager
def _attached(address: str | None, interrupts: Interrupts, *, debug: bool) -> Iterator[RayProcess]:
    gc.enable()  # work may take hours
    with ExitStack() as stack:
        folder = None if address else stack.enter_context(RayFolder())
        env = for_ray(os.environ, folder.environment() if folder else CLUSTER_ENVIRONMENT)
        process = stack.enter_context(RayProcess(interrupts, env, folder.path if folder else Path("/")))
        process.attach(address, folder.sessions if folder else None, debug=debug)
        interrupts.as_flag()
        yield process


def _show_plans(requests: Requests, environ: Mapping[str, str], *, json_lines: bool) -> int:
    surveys, code = look_at_each(requests, environ)
    if json_lines:
        print_plans(requests, surveys)
        return code
    for request, survey in zip(requests.each, surveys, strict=True):
        if survey is None:
            continue
        if requests.campaign:
            output.line(f"{request.run_id}: {survey.model.slug} at TP {survey.identity.tp}")
        for decision in survey.plan.decisions:
            output.line(str(decision))
        output.line(str(survey.plan.verify))
        if may_ask(survey):
            output.line(NOT_ASKED)
    return code


class _Heard:
    """The run's view, which knows as well whether it was said that the run is over."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.ended = False

    def show(self, event: Event) -> None:
        self.ended |= event.name == "ensure" and event.phase is Phase.END
        self._view.show(event)

    def refresh(self) -> None:
        self._view.refresh()

    def __enter__(self) -> "_Heard":
        self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.__exit__(kind, error, trace)


@dataclass(frozen=True)
class _Run:
    """One run from the look at the host to a result that is written, whatever happens."""

    request: NodeRequest
    survey: Survey
    environ: Mapping[str, str]
    view: _Heard
    ray: Kept[RayProcess]
    interrupts: Interrupts
    debug: bool

    def go(self) -> PrepResult:
        with self.view:
            result = self._carried_out()
            self._tell_metrics(result)
            return result

    def _carried_out(self) -> PrepResult:
        try:
            return _told(self._with_ray() if self.survey.plan.needs_work else self._without_ray())
        except KeyboardInterrupt:
            return self._close(Interrupted())
        except RayprepError as error:
            return self._fail(error)
        except Exception as error:
            if self.debug:
                raise
            return self._fail(RayprepError(f"{type(error).__name__}: {error}", error_type=ErrorType.INTERNAL_ERROR))

    def _tell_metrics(self, result: PrepResult) -> None:
        path = self.request.layout.metrics
        try:
            add_to_metrics_file(path, [*host_samples(result), *state_samples([only_host(result)])])
        except (OSError, RayprepError) as error:
            why = error.strerror if isinstance(error, OSError) else error.message
            message = f"metrics file {path} cannot be written: {why}"
            self.view.show(event("ensure", Phase.WARNING, message=message))

    def _fail(self, error: RayprepError) -> PrepResult:
        result = self._close(error)
        if result.errors:  # none where the agent had written its last before it died
            say(error)
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
        try:
            with self._asking() as asking, self.ray.held() as ray:
                answer = asking.finish(lambda: self.interrupts.asked, self.view.refresh) if asking else None
                request = self.request.answered(self.survey.signature, answer)
                job = HostJob(request, uses_gpus=bool(self.survey.signature.gpu_count))
                return ray.prepare_host(job, self.view)
        except BaseException:
            leave_nothing(self.request.invocation)  # or it may write what we are to close
            raise

    def _asking(self) -> AbstractContextManager[Asking | None]:
        """Asks SGLang what its server needs, while Ray starts."""
        if not may_ask(self.survey):
            return contextlib.nullcontext()
        return Asking.of(self.survey, self.request, self.environ)

    def _close(self, error: RayprepError) -> PrepResult:
        """Writes the end that the agent could not write, and says it."""
        result = close_result(self.request, self.survey, error, ended=self.view.ended)
        said = run_end(result.status.value, error if result.errors else None)
        with contextlib.suppress(RayprepError, OSError):
            self._log().record(said)
        self.view.show(said)
        return result

    def _log(self) -> SessionLog:
        try:
            return SessionLog(self.request.layout.session_log(self.request.run_id))
        except OSError as error:
            raise root_unfit(self.request.layout.telemetry, "telemetry", error) from None


def _told(result: PrepResult) -> PrepResult:
    """Says what ended the run as a whole. How each stage failed was said as it happened."""
    for error in result.errors:
        if error.stage is None and error.error_type is not ErrorType.INTERRUPTED:
            output.error(error.error_type.value, error.message)
    return result
