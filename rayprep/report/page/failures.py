"""What failed, each kind of failure once, with the hosts that it struck: pure."""

import re
from collections.abc import Iterator, Mapping

from rayprep.base.errors import MEANING, ErrorType
from rayprep.base.records import Record
from rayprep.model.fleet.result import FleetError, FleetHost
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.proof import VERIFY
from rayprep.model.result import PrepResult
from rayprep.model.run_files import LogTails, RunRecord
from rayprep.model.stages import StageStatus

_VARYING = re.compile(r"[0-9]+")
"""Process ids, sizes and times tell no two kinds of failure apart."""


class Failure(Record):
    """One failure on one host, or of the run as a whole."""

    host: str | None
    where: str
    """The stage, the proof, or empty."""
    error_type: ErrorType | None
    message: str
    hint: str = ""
    log_tail: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        return MEANING[self.error_type][0] if self.error_type else ""

    @property
    def kind(self) -> tuple[object, ...]:
        """The same for hosts that failed in the same way."""
        message = self.message.replace(self.host, "") if self.host else self.message
        return (self.where, self.error_type, _VARYING.sub("", message))


class FailureGroup(Record):
    """Hosts that failed in the same way; `first` speaks for all of them."""

    first: Failure
    hosts: tuple[str, ...]


def failures_of(record: RunRecord) -> tuple[Failure, ...]:
    """Those of the run as a whole first."""
    run = record.fleet.errors if record.fleet else ()
    found = [_of_fleet(None, each) for each in run]
    for host, known in record.hosts.items():
        found += host_failures(host, known, record.results.get(host), record.log_tails)
    return tuple(found)


def grouped(failures: tuple[Failure, ...]) -> tuple[FailureGroup, ...]:
    """The run's own first, then what struck most hosts."""
    groups: dict[tuple[object, ...], list[Failure]] = {}
    for each in failures:
        groups.setdefault((each.host is None, *each.kind), []).append(each)
    found = [
        FailureGroup(
            first=next((each for each in group if each.log_tail), group[0]),
            hosts=tuple(dict.fromkeys(each.host for each in group if each.host is not None)),
        )
        for group in groups.values()
    ]
    return tuple(sorted(found, key=lambda group: (bool(group.hosts), -len(group.hosts))))


def host_failures(host: str, known: FleetHost, result: PrepResult | None, tails: LogTails) -> list[Failure]:
    """Of a host that a later attempt has made good, none: as in the exit status, they do not count."""
    if known.state.is_good:
        return []
    found = list(_of_result(host, result, tails)) if result else []
    said = {(each.error_type, each.message) for each in found}
    if known.error and (known.error.error_type, known.error.message) not in said:
        found.append(_of_fleet(host, known.error))
    if not found and known.state in (HostPhase.FAILED, HostPhase.LOST):
        found.append(Failure(host=host, where="", error_type=None, message=f"{known.state}; no reason was kept"))
    return found


def _of_fleet(host: str | None, error: FleetError) -> Failure:
    return Failure(
        host=host,
        where=error.stage or "",
        error_type=error.error_type,
        message=error.message,
        hint=_usual_hint(error.error_type, error.message),
    )


def _usual_hint(kind: ErrorType, message: str) -> str:
    """Nothing where the message's own end says what to do, in parentheses."""
    return "" if message.endswith(")") else MEANING[kind][1]


def _of_result(host: str, result: PrepResult, tails: Mapping[tuple[str, str], tuple[str, ...]]) -> Iterator[Failure]:
    for each in result.errors:
        if each.stage is None:
            hint = _usual_hint(each.error_type, each.message)
            yield Failure(host=host, where="", error_type=each.error_type, message=each.message, hint=hint)
    for stage, own in result.stages.items():
        for error in own.errors if own.status is StageStatus.ERROR else ():
            yield Failure(
                host=host,
                where=stage,
                error_type=error.error_type,
                message=error.message,
                hint=error.hint or MEANING[error.error_type][1],
                log_tail=error.log_tail or tails.get((host, stage), ()),
            )
    if (proof := result.verify) and proof.status == "error":
        kind = proof.error_type or ErrorType.VERIFY_FAILED
        yield Failure(
            host=host,
            where=VERIFY,
            error_type=kind,
            message=proof.message or MEANING[kind][0],
            hint=MEANING[kind][1],
            log_tail=tails.get((host, VERIFY), ()),
        )
