"""What `rayprep doctor` finds out about a host: one finding a check, each with what to do about it."""

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, model_validator

from rayprep.base.records import Record, Utc
from rayprep.base.text import one_line

EXIT_UNFIT = 3
"""The exit code of an environment that cannot do it."""


class State(StrEnum):
    """From good to bad: `warn` is worth a look, `fail` stops a run or spoils its caches."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


def _as_line(value: object) -> object:
    return one_line(value) if isinstance(value, str) else value


Line = Annotated[str, BeforeValidator(_as_line)]
"""Compilers and the OS say whatever they like; a finding is one line that prints and encodes everywhere."""


class Finding(Record):
    """One check: the value that was found, and the remedy unless all is well."""

    check: Line
    state: State
    message: Line
    remedy: Line | None = None

    @model_validator(mode="after")
    def _bad_news_comes_with_a_remedy(self) -> "Finding":
        if self.state is not State.OK and not self.remedy:
            raise ValueError(f"{self.check}: a finding that is not ok needs a remedy")
        return self


def ok(check: str, message: str) -> Finding:
    return Finding(check=check, state=State.OK, message=message)


def warn(check: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.WARN, message=message, remedy=remedy)


def fail(check: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.FAIL, message=message, remedy=remedy)


class DoctorReport(Record):
    """All findings on one host, in the order in which they are shown."""

    schema_version: str = "1"
    rayprep_version: str
    host: Line
    taken_at: Utc
    device: str
    profiles_root: Line
    telemetry_root: Line
    findings: tuple[Finding, ...]

    def count(self, state: State) -> int:
        return sum(finding.state is state for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return EXIT_UNFIT if self.count(State.FAIL) else 0
