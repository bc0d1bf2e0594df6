"""What one command said on each host of a cluster, as one file and in a line each: pure."""

import json
from collections import Counter

from pydantic import Field, ValidationError

from rayprep.base.records import Record, Utf8, read_tolerant
from rayprep.doctor.findings import DoctorReport, State
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.store.reset.report import ResetReport


class Answer(Record):
    """One host's. `output` is the command's JSON; `error` its line on standard error, or why it could not be asked."""

    exit_code: int
    output: Utf8 = ""
    error: Utf8 = ""


class Everywhere(Record):
    """All hosts' answers to one command."""

    schema_version: str = "1"
    command: tuple[Utf8, ...]
    hosts: dict[Utf8, Answer] = Field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or the first failing host's."""
        return next((self.hosts[host].exit_code for host in sorted(self.hosts) if self.hosts[host].exit_code), 0)

    @property
    def document(self) -> dict[str, object]:
        """For `--json`: each host's own JSON under its name."""
        hosts = {
            host: {"exit_code": each.exit_code, "error": each.error, "report": _parsed(each.output)}
            for host, each in sorted(self.hosts.items())
        }
        return {"schema_version": self.schema_version, "command": list(self.command), "hosts": hosts}

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Host, how it ended, and what it said in a few words; failures first."""
        order = sorted(self.hosts, key=lambda host: (self.hosts[host].exit_code == 0, host))
        return [(host, _ended(self.hosts[host]), _summary(self.command[0], self.hosts[host])) for host in order]


def _parsed(output: str) -> object:
    try:
        return json.loads(output)
    except ValueError:
        return None


def _ended(answer: Answer) -> str:
    return "ok" if answer.exit_code == 0 else f"exit {answer.exit_code}"


def _summary(command: str, answer: Answer) -> str:
    try:
        if command == "doctor":
            return _of_doctor(read_tolerant(DoctorReport, answer.output))
        if command == "inspect":
            return _of_inspect(read_tolerant(ProfileSnapshot, answer.output))
        if command == "reset":
            return _of_reset(read_tolerant(ResetReport, answer.output))
    except ValidationError:
        pass
    return answer.error


def _of_doctor(report: DoctorReport) -> str:
    counts = Counter(finding.state for finding in report.findings)
    troubles = [f"{each.check}: {each.message}" for each in report.findings if each.state is State.FAIL]
    warned = f"{counts[State.OK]} ok, {counts[State.WARN]} to look at, {counts[State.FAIL]} failed"
    return "; ".join([warned, *troubles])


def _of_inspect(snapshot: ProfileSnapshot) -> str:
    words = []
    for name, cache in snapshot:
        if hasattr(cache, "valid"):
            state = "valid" if cache.valid else f"{cache.reason or 'invalid'}"
            words.append(f"{name}: {state}, {cache.file_count} files, {cache.size_bytes / 2**20:.1f} MiB")
    return "; ".join(words)


def _of_reset(report: ResetReport) -> str:
    would = "would remove" if report.dry_run else "removed"
    return f"{would} {len(report.removed)} entries, {report.freed_bytes / 2**20:.1f} MiB"
