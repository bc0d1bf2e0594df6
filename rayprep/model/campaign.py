"""A campaign: several requests of one spec file, one after another, and what they come to together. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence

from rayprep.base.errors import BadRequest, HostUnfit, Interrupted, LockTimeout, RayprepError
from rayprep.base.records import Record
from rayprep.model.result import RunStatus
from rayprep.model.stages import STAGES

_WORST_FIRST = (
    Interrupted.exit_code,
    *(facts.code for facts in STAGES.values()),
    *(LockTimeout.exit_code, RayprepError.exit_code, HostUnfit.exit_code, BadRequest.exit_code),
)
"""As within one result, and last what is only wrong in the spec file."""
NOT_STARTED = "not_started"


class RequestEnd(Record):
    """How one request ended, be it before it had a result."""

    status: RunStatus
    exit_code: int


def run_ids(campaign: str, count: int) -> tuple[str, ...]:
    """`night-1`, `night-2` and so on: each request is a run of its own."""
    return tuple(f"{campaign}-{number}" for number in range(1, count + 1))


def is_run_of(run_id: str, asked: str) -> bool:
    """Whether `asked` names this run, or the campaign that it belongs to."""
    return re.fullmatch(rf"{re.escape(asked)}(-[1-9][0-9]*)?", run_id) is not None


def worst_exit(codes: Iterable[int]) -> int:
    """The exit status of a campaign whose requests had these; 0 where all went well."""
    failed = [code for code in codes if code]
    return min(failed, key=lambda code: _WORST_FIRST.index(code) if code in _WORST_FIRST else -1, default=0)


def exit_code(run_ids: Sequence[str], ended: Mapping[str, RequestEnd]) -> int:
    """Requests that were not started were kept from it by an interrupt."""
    left = [Interrupted.exit_code for run_id in run_ids if run_id not in ended]
    return worst_exit([*left, *(each.exit_code for each in ended.values())])


def status_line(run_ids: Sequence[str], ended: Mapping[str, RequestEnd]) -> str:
    """`partial night-1:ok night-2:error night-3:not_started`, what RESULT_CAMPAIGN says."""
    found = {run_id: ended[run_id].status.value if run_id in ended else NOT_STARTED for run_id in run_ids}
    same = set(found.values()) & {RunStatus.OK.value, RunStatus.ERROR.value}
    status = same.pop() if len(set(found.values())) == 1 and same else RunStatus.PARTIAL.value
    return " ".join([status, *(f"{run_id}:{each}" for run_id, each in found.items())])
