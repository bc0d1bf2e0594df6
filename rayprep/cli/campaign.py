"""One request, or those of a campaign one after another: a failed one does not keep the next from running."""

from collections.abc import Callable, Sequence
from typing import Protocol

from rayprep.base.errors import Interrupted, RayprepError
from rayprep.cli import output
from rayprep.cli.failures import fail
from rayprep.cli.request import Requests
from rayprep.host.interrupts import Interrupts
from rayprep.model.campaign import RequestEnd, exit_code, status_line
from rayprep.model.result import RunStatus
from rayprep.node.request import NodeRequest


class Result(Protocol):
    """A host's, or a fleet's."""

    @property
    def status(self) -> RunStatus: ...

    @property
    def exit_code(self) -> int: ...


def run_each(
    requests: Requests, interrupts: Interrupts, one: Callable[[NodeRequest], Result], *, json_lines: bool
) -> int:
    """Runs `one` for each request until an interrupt, and returns the exit status of the worst.

    Raises:
        RayprepError, KeyboardInterrupt: where it is no campaign, what `one` raises before it has a result.
    """
    if not requests.campaign:
        return one(requests.each[0]).exit_code
    ended: dict[str, RequestEnd] = {}
    for request in requests.each:
        end = ended[request.run_id] = _end_of(request, one, json_lines=json_lines)
        if interrupts.asked or end.exit_code == Interrupted.exit_code:
            break
    return _say_end([request.run_id for request in requests.each], ended)


def _end_of(request: NodeRequest, one: Callable[[NodeRequest], Result], *, json_lines: bool) -> RequestEnd:
    try:
        result = one(request)
        return RequestEnd(status=result.status, exit_code=result.exit_code)
    except KeyboardInterrupt:
        return RequestEnd(status=RunStatus.PARTIAL, exit_code=Interrupted.exit_code)
    except RayprepError as error:
        code = fail(error, as_event=json_lines, about=request.run_id)
        return RequestEnd(status=RunStatus.ERROR, exit_code=code)


def _say_end(run_ids: Sequence[str], ended: dict[str, RequestEnd]) -> int:
    output.for_programs(f"RESULT_CAMPAIGN {status_line(run_ids, ended)}")
    return exit_code(run_ids, ended)
