"""Findings, and what a report makes of them."""

import json

import pytest
from pydantic import ValidationError

from rayprep.doctor.findings import DoctorReport, Finding, State, fail, ok, warn


def report(*findings: Finding) -> DoctorReport:
    return DoctorReport(
        rayprep_version="1",
        host="h",
        taken_at="2026-01-01T00:00:00Z",
        device="auto",
        profiles_root="/p",
        telemetry_root="/t",
        findings=findings,
    )


class TestFindings:
    def test_bad_news_without_a_remedy_is_a_mistake(self) -> None:
        with pytest.raises(ValidationError, match="needs a remedy"):
            Finding(check="x", state=State.FAIL, message="broken")

    def test_whatever_is_found_becomes_one_line_that_encodes(self) -> None:
        finding = warn("x", "first\nsecond\x1b[31m\tred \udcff", "do\r\nthis")
        assert finding.message == r"first second\x1b[31m red \xff"
        assert finding.remedy == "do this"
        assert json.loads(finding.model_dump_json())["message"] == finding.message

    def test_only_a_failure_fails_the_report(self) -> None:
        assert report(ok("a", "fine")).exit_code == 0
        assert report(ok("a", "fine"), warn("b", "hm", "look")).exit_code == 0
        assert report(warn("b", "hm", "look"), fail("c", "no", "mend")).exit_code == 3
