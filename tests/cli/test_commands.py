"""The commands that only look: inspect, snapshot, env, explain, the dry run, and sgl-admin."""

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rayprep.base.sealed import open_seal, seal
from rayprep.cli.app import COMMANDS
from tests.conftest import ENSURE_TINY, Built, Roots, write_model
from tests.needs import needs_torch

CACHES = ["triton", "torchinductor", "flashinfer", "deep_gemm", "moe_configs", "sglang_jit", "others"]


def test_help_names_every_command_and_imports_none(roots: Roots) -> None:
    roots.extra_env["PYTHONPROFILEIMPORTTIME"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "rayprep", "--help"], env=roots.env, capture_output=True, text=True, check=True
    )
    for command in ("ensure", "verify", "inspect", "snapshot", "env", "explain", "pack", "unpack", "reset", "doctor"):
        assert f"  {command} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rayprep.cli.app" in imported
    assert not {"pydantic", "rayprep.model", "rayprep.host", "rayprep.node", "rayprep.fleet"} & imported


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_own_help_begins_as_the_list_says(name: str) -> None:
    command = importlib.import_module(f"rayprep.cli.{name}").command
    assert (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_a_command_that_is_not_there_is_likened_to_those_that_are(roots: Roots) -> None:
    done = roots.run("enshure")
    assert (done.returncode, "Did you mean 'ensure'?" in done.stderr) == (2, True)


def test_inspect_of_an_empty_root_writes_nothing(roots: Roots) -> None:
    snapshot = roots.inspect()
    assert snapshot["schema_version"] == "1"
    for cache in CACHES:
        assert (snapshot[cache]["exists"], snapshot[cache]["valid"]) == (False, False)
        assert snapshot[cache]["reason"] == "no_completion"
    assert not roots.profiles.exists()


def test_inspect_for_people(built: Built) -> None:
    table = built.roots.run("inspect", "--inductor").stdout
    assert "torchinductor  yes" in table
    assert "tiny-dense/tp1" in table
    assert "deep_gemm" not in table


def test_inspect_of_a_model_asks_for_that_model(built: Built, tmp_path: Path) -> None:
    assert built.roots.inspect("--model", "tiny-dense")["torchinductor"]["valid"] is True
    for other in (("--model", "tiny-moe"), ("--model", "tiny-dense", "--tp", "2")):
        cache = built.roots.inspect(*other)["torchinductor"]
        assert (cache["valid"], cache["reason"]) == (False, "no_completion")
    same_name = write_model(tmp_path / "tiny-dense", vocab_size=2048)
    assert built.roots.inspect("--model", str(same_name))["torchinductor"]["valid"] is False


def test_paths_are_relative_to_home_where_they_can_be(roots: Roots) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayprep", "inspect", "--json"],
        env=roots.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["triton"]["path"] == ".cache/sglang/profiles/triton"


def test_a_signature_that_differs_is_named_field_by_field(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    path = next((roots.profiles / ".rayprep" / "inductor").glob("*.json"))
    completion = json.loads(open_seal(path.read_bytes()))
    completion["signature"] |= {"torch_version": "1.0.0", "cpu_isa": "mmx", "driver_version": "1"}
    path.write_text(seal(json.dumps(completion)), encoding="utf-8")
    cache = roots.inspect()["torchinductor"]
    assert (cache["valid"], cache["reason"]) == (False, "signature_mismatch")
    assert {each["field"] for each in cache["differences"]} == {"torch_version", "cpu_isa"}
    explained = roots.run("explain", *ENSURE_TINY).stdout
    assert "torch_version was 1.0.0" in explained
    assert "cpu_isa was mmx" in explained


def test_snapshot_merges_into_a_manifest_and_touches_nothing_else(built: Built, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    before = {"run_id": "container-run-1", "services": {"x": [1, 2]}, "profile_cache": {"other": {"é": None}}}
    manifest.write_text(json.dumps(before), encoding="utf-8")
    done = built.roots.run("snapshot", "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    after = json.loads(manifest.read_text(encoding="utf-8"))
    start = after["profile_cache"].pop("start")
    assert after == before
    assert start["torchinductor"]["valid"] is True
    assert start["schema_version"] == "1"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"profile_cache": 7}'])
def test_a_manifest_that_cannot_be_merged_into_is_left_as_it_was(roots: Roots, tmp_path: Path, content: str) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(content, encoding="utf-8")
    done = roots.run("snapshot", "--manifest", str(manifest))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert manifest.read_text(encoding="utf-8") == content


def test_env_is_for_eval_and_for_a_container(roots: Roots) -> None:
    roots.extra_env["HOME"] = str(roots.base)
    odd = Roots(roots.base / "with space")
    odd.base.mkdir()
    text = odd.run("env").stdout
    shown = subprocess.run(
        ["sh", "-c", f"eval {shlex.quote(text)}; printenv TRITON_CACHE_DIR FLASHINFER_WORKSPACE_BASE"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [f"{odd.profiles}/triton", f"{odd.profiles}/flashinfer"]
    file = dict(line.split("=", 1) for line in odd.run("env", "--env-file").stdout.splitlines())
    assert file["SGLANG_DG_CACHE_DIR"] == f"{odd.profiles}/deep_gemm"
    assert "SGLANG_MOE_CONFIG_DIR" not in file
    config = odd.profiles / "moe_configs" / "configs" / "triton_3_6_0" / "E=8.json"
    config.parent.mkdir(parents=True)
    config.touch()
    assert "SGLANG_MOE_CONFIG_DIR=" in odd.run("env", "--env-file").stdout


def test_env_warns_of_configs_that_a_server_would_not_see(roots: Roots) -> None:
    library = Path(__file__).parents[1] / "fakes" / "moe_lib"
    roots.extra_env["PYTHONPATH"] = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")])
    assert roots.run("env").stderr == "", "a server uses its own"
    config = roots.profiles / "moe_configs" / "configs" / "triton_3_6_0" / "E=8.json"
    config.parent.mkdir(parents=True)
    config.touch()
    shown = roots.run("env")
    assert "export SGLANG_MOE_CONFIG_DIR=" in shown.stdout
    assert shown.stderr == (
        f"rayprep: warning: 2 of the MoE configs that SGLang ships are not in {roots.profiles}/moe_configs, "
        "where servers look (run `rayprep ensure`)\n"
    )
    assert [path.name for path in config.parents[1].rglob("*.json")] == ["E=8.json"], "it only looks"


@needs_torch()
def test_the_dry_run_gives_a_reason_and_a_cost_and_does_nothing(roots: Roots) -> None:
    done = roots.run("ensure", "--model", "tiny-dense", "--dry-run", "--skip", "flashinfer")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("deep_gemm: skip, no_gpu")
    assert lines[2] == "flashinfer: skip, requested"
    assert lines[3].startswith("inductor: build, no_completion: 2 to build, about ")
    assert lines[4].startswith("serve: skip, no_gpu")
    assert lines[5:] == ["verify: skip, no_gpu"]
    assert not roots.profiles.exists()
    assert not roots.telemetry.exists()


@needs_torch()
def test_the_cost_is_reckoned_from_what_was_measured(built: Built) -> None:
    done = built.roots.run("ensure", *ENSURE_TINY, "--rebuild", "inductor", "--dry-run")
    found = re.search(r"inductor: .*about (\d+) s", done.stdout)
    assert found, done.stdout
    (completion,) = (built.roots.profiles / ".rayprep" / "inductor").glob("*.json")
    took = json.loads(completion.read_text(encoding="utf-8"))["duration_s"]
    assert abs(int(found[1]) - took) <= 1
    assert 0 < took <= built.build_s, "hashing and writing it comes after"
    assert "(1 unit, as 1 earlier build of this model here took for each)" in done.stdout


def test_a_spec_file_with_an_unknown_key(built: Built, roots: Roots, tmp_path: Path) -> None:
    built.copy_to(roots)
    spec = {
        "schema_version": "1",
        "model_path": "tiny-dense",
        "tp": 2,
        "timout_s": 5,
        "batch_sizes": [1],
        "ops": {"deep_gemm": "ensure", "moe": {"mode": "tune", "policy": {"strategy": "triton", "blocks": [8]}}},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    done = roots.run("ensure", "--spec-file", str(tmp_path / "spec.json"), "--tp", "1", "--run-id", "from-spec")
    assert done.returncode == 0, done.stdout + done.stderr
    result = roots.result("from-spec")
    settings = result["run"]["settings"]
    assert settings["ignored_spec_keys"] == ["timout_s"]
    assert "did you mean timeout_s?" in result["warnings"][0]
    assert (settings["source"], settings["tp"], settings["batch_sizes"]) == ("flags", 1, [1])
    assert (settings["sources"]["tp"], settings["sources"]["batch_sizes"]) == ("flag", "spec")
    assert settings["ops"]["moe_tune"] == "rebuild"
    assert settings["moe"]["batch_sizes"] == [8], "the tuner's own"
    log = (roots.telemetry / "logs" / "from-spec.log").read_text(encoding="utf-8")
    assert "unknown key timout_s ignored" in log


@pytest.mark.parametrize("command", [("explain", "--json"), ("ensure", "--dry-run", "--json")])
def test_a_typo_in_a_spec_file_shows_before_anything_is_done(
    roots: Roots, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "spec.json").write_text('{"model": "tiny-dense", "timout_s": 5}', encoding="utf-8")
    done = roots.run(*command, "--spec-file", str(tmp_path / "spec.json"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"rayprep: warning: .*unknown key timout_s ignored; did you mean timeout_s\?\n", done.stderr)
    assert json.loads(done.stdout)["decisions"]


@pytest.mark.parametrize("command", [("explain",), ("ensure", "--dry-run", "--run-id", "night")])
def test_one_wrong_request_hides_no_other(roots: Roots, tmp_path: Path, command: tuple[str, ...]) -> None:
    asked = {"campaign": [{"model": "tiny-dense"}, {"model": "no/where"}, {"model": "tiny-moe"}]}
    (tmp_path / "night.json").write_text(json.dumps(asked), encoding="utf-8")
    done = roots.run(*command, "--spec-file", str(tmp_path / "night.json"))
    assert done.returncode == 2
    assert re.fullmatch(r"rayprep: error \[BadRequest\]: request 2 of the campaign: model 'no/where' .*\n", done.stderr)
    headings = [line for line in done.stdout.splitlines() if " at TP 1" in line]
    assert [line.removeprefix("night-1: ").removeprefix("night-3: ").split()[0] for line in headings] == [
        "tiny-dense",
        "tiny-moe",
    ]
    plans = json.loads(roots.run(*command, "--json", "--spec-file", str(tmp_path / "night.json")).stdout)
    assert [plan is None for plan in plans] == [False, True, False]


def test_sgl_admin_is_the_same_code_under_the_contracts_name(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    admin = [sys.executable, "-c", "import sys; from rayprep.cli.sgl_admin import main; sys.exit(main())", "caches"]
    where = ["--profiles-root", str(roots.profiles)]
    done = subprocess.run(
        [*admin, "inspect", "--json", *where], env=roots.env, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["torchinductor"]["valid"] is True
    where += ["--telemetry-root", str(roots.telemetry)]
    done = subprocess.run(
        [*admin, "ensure", "--json", *ENSURE_TINY, *where, "--run-id", "admin"],
        env=roots.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2].startswith("RESULT_JSON ")
    assert done.stdout.splitlines()[-1].startswith("RESULT_STATUS ok ")
