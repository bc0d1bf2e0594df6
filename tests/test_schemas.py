"""Every file that a run writes is held against the JSON Schema that its model gives."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from rayprep.cli.schema import FILES, schema
from rayprep.model.stages import StageName
from tests.conftest import ENSURE_TINY, Built, Roots
from tests.needs import needs_torch


def check(name: str, document: object) -> None:
    jsonschema.validate(document, schema(name), jsonschema.Draft202012Validator)


def load(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_the_command_prints_a_schema_that_is_one(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "rayprep", "schema", name], capture_output=True, text=True, check=True)
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


def test_a_schema_refuses_what_the_model_refuses() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check("prep_result", {"schema_version": "1"})
    with pytest.raises(jsonschema.ValidationError):
        check("event", {"name": "inductor", "phase": "start", "ts": "2026-01-01T00:00:00Z", "typo": 1})


@needs_torch()
@pytest.mark.ray
def test_everything_that_a_run_leaves_fits_its_schema(built: Built) -> None:
    roots = built.roots
    run = roots.telemetry / "container_runs" / built.run_id
    check("prep_result", load(run / "prep_result.json"))
    check("profile_snapshot", load(run / "cache_snapshot.json"))
    completions = list((roots.profiles / ".rayprep").glob("*/*.json"))
    assert len(completions) == len(StageName)
    for path in completions:
        check("completion", load(path))
    for event in roots.events(built.run_id):
        check("event", event)
    known = {run / "prep_result.json", run / "cache_snapshot.json", *completions}
    written = {path for root in (roots.profiles, roots.telemetry) for path in root.rglob("*.json")}
    assert {path for path in written if "history" not in path.parts and path.parent == run} <= known


def test_what_the_commands_print_fits_its_schema(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    check("profile_snapshot", roots.inspect("--model", "tiny-dense"))
    check("doctor_report", json.loads(roots.run("doctor", "--json").stdout))
    check("reset_report", json.loads(roots.run("reset", "--json", "--dry-run").stdout))
    noop = roots.run("ensure", *ENSURE_TINY, "--json", "--run-id", "noop")
    assert noop.returncode == 0
    check("prep_result", roots.result("noop"))
    refused = roots.run("ensure", *ENSURE_TINY, "--json", "--tp", "3")
    check("event", json.loads(refused.stdout.removeprefix("OPTIMIZE_JSON ")))
