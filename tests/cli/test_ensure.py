"""The contract's quick acceptance tests, and what a run writes, end to end on the CPU stage."""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rayprep.host.locks import is_held
from rayprep.model.caches import CacheName
from tests.conftest import ENSURE_TINY, Built, Roots, write_model
from tests.needs import needs_torch
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.torch, needs_torch()]

UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
STAGES = ["deep_gemm", "moe_tune", "flashinfer", "inductor", "serve"]
NOOP = " inductor:noop serve:skipped verify:skipped\n"


def test_cold_start_to_ok_to_valid(roots: Roots, built: Built) -> None:
    cold = roots.inspect()
    assert all(
        cold[cache]["exists"] is False and cold[cache]["valid"] is False for cache in ("torchinductor", "triton")
    )
    warm = built.roots.inspect()
    assert warm["torchinductor"]["exists"] is True
    assert warm["torchinductor"]["file_count"] > 0
    assert warm["torchinductor"]["signature"]["model_slug"] == "tiny-dense"
    assert all(warm[cache]["valid"] is True for cache in CacheName)
    assert warm["deep_gemm"]["reason"] == "not_needed"
    assert warm["partial"] is False


def test_the_result_has_the_contracts_shape(built: Built) -> None:
    result = built.roots.result(built.run_id)
    assert result["schema_version"] == "1"
    assert result["status"] == "ok"
    run = result["run"]
    assert (run["run_id"], run["model_slug"], run["tp"], run["device_name"]) == (built.run_id, "tiny-dense", 1, "cpu")
    assert UTC.fullmatch(run["started_at"])
    assert UTC.fullmatch(run["finished_at"])
    settings = run["settings"]
    assert (settings["source"], settings["write_mode"]) == ("flags", "atomic")
    assert (settings["warmup_port"], settings["mem_fraction"]) == (30999, 0.96)
    shell = dict(line.split("=", 1) for line in built.roots.run("env", "--env-file").stdout.splitlines())
    # What the contract names is said in any case, and a server is not sent to a folder that has no configs.
    configs = str(built.roots.profiles / "moe_configs")
    assert settings["env"] == {**shell, "SGLANG_MOE_CONFIG_DIR": configs}
    assert shell["SGLANG_DG_CACHE_DIR"] == str(built.roots.profiles / "deep_gemm")
    assert list(result["stages"]) == STAGES
    for name in set(STAGES) - {"inductor"}:
        stage = result["stages"][name]
        assert (stage["ran"], stage["status"], stage["status_code"], stage["reason"]) == (False, "skipped", 0, "no_gpu")
    inductor = result["stages"]["inductor"]
    assert (inductor["ran"], inductor["status"], inductor["status_code"]) == (True, "ok", 0)
    artifacts = inductor["artifacts"]
    assert artifacts["cache_dir"]["container_path"] == str(built.roots.profiles / "torchinductor")
    assert artifacts["files"]["count"] == artifacts["files_delta"] > 0
    assert artifacts["files"]["bytes"] == artifacts["disk_delta_bytes"] > 0
    assert artifacts["built"] == artifacts["units"] == ["decode:cpu:bf16:l2:b1:s512"]
    assert Path(artifacts["log_file"]["host_path"]).is_file()
    headroom = inductor["headroom"]
    assert headroom["free_bytes"] > headroom["required_bytes"] > 0
    assert "guess" in headroom["estimate"]
    threads = str(min(32, len(os.sched_getaffinity(0))))
    assert inductor["env"] == {"CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_COMPILE_THREADS": threads}
    assert inductor["cleanup"] == {"kill_sent": False, "killed": True, "timeout_s": 10.0}
    assert result["telemetry_probe"]["ok"] is False
    verify = result["verify"]
    assert (verify["ran"], verify["status"], verify["reason"]) == (False, "skipped", "no_gpu")
    assert result["errors"] == []


def test_the_log_has_each_line_once(built: Built) -> None:
    lines = built.roots.log(built.run_id).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines))
    starting = [line for line in lines if line.startswith("[OPTIMIZE inductor] starting {model=tiny-dense, tp=1")]
    assert len(starting) == 1
    events = [event for event in built.roots.events(built.run_id) if event["name"] == "inductor"]
    assert next(event["phase"] for event in events) == "start"
    assert (events[-1]["phase"], events[-1]["status"]) == ("end", "ok")
    assert {"progress"} == {event["phase"] for event in events[1:-1]}
    assert events[-2]["done"] == events[-2]["total"] == 1


def test_json_lines_and_the_result_pointers_come_last(built: Built) -> None:
    lines = built.stdout.splitlines()
    assert all(line.startswith("OPTIMIZE_JSON {") for line in lines[:-2])
    assert lines[-2] == f"RESULT_JSON {built.roots.telemetry}/container_runs/{built.run_id}/prep_result.json"
    stages = "deep_gemm:skipped moe_tune:skipped flashinfer:skipped inductor:ok serve:skipped"
    assert lines[-1] == f"RESULT_STATUS ok {stages} verify:skipped"


def test_nothing_of_ours_is_left_running_or_lying_about(built: Built) -> None:
    names = {path.name for path in built.roots.profiles.iterdir()}
    assert names == {"torchinductor", "triton", ".rayprep", ".locks", ".in_progress"}
    assert not list((built.roots.profiles / "triton").iterdir()), "which the stage fills on a GPU alone"
    assert not list((built.roots.profiles / ".in_progress").iterdir())
    assert not (built.roots.profiles / ".rayprep" / "scratch").exists()
    assert not [path for path in (built.roots.base / "home").rglob("*") if path.is_file()]


def test_a_second_run_does_nothing_and_starts_no_ray(built: Built) -> None:
    """At the very place, since that is what it proves: all that it writes is a result of its own."""
    roots = Roots(built.roots.base)
    before = {path: path.stat().st_mtime_ns for path in roots.profiles.rglob("*") if path.is_file()}
    roots.extra_env["PYTHONPROFILEIMPORTTIME"] = "1"
    done = roots.run("ensure", *ENSURE_TINY, "--run-id", "again")
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"rayprep.node", "pydantic"} <= imported
    assert not {"ray", "torch"} & imported
    stage = roots.result("again")["stages"]["inductor"]
    assert (stage["ran"], stage["status"], stage["reason"]) == (False, "noop", "valid_signature")
    assert stage["signature"]["torch_version"]
    after = {path: path.stat().st_mtime_ns for path in roots.profiles.rglob("*") if path.is_file()}
    assert after == before


def test_one_run_id_twice_keeps_the_first_as_history(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    folder = roots.telemetry / "container_runs" / "same"
    for _ in range(3):
        assert roots.run("ensure", *ENSURE_TINY, "--run-id", "same").returncode == 0
        if not (folder / "history").exists():
            (folder / "report.html").write_text("of the first", encoding="utf-8")
    kept = sorted(path.name for path in (folder / "history").iterdir())
    assert kept == ["prep_result.1.json", "prep_result.2.json", "report.1.html"]
    assert not (folder / "report.html").exists()
    assert json.loads((folder / "prep_result.json").read_text(encoding="utf-8"))["status"] == "ok"


@pytest.mark.slow
def test_another_batch_size_is_added_to_what_is_there(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    done = roots.run("ensure", "--model", "tiny-dense", "--batch-size", "1", "--batch-size", "2", "--run-id", "wider")
    assert done.returncode == 0, done.stdout + done.stderr
    artifacts = roots.result("wider")["stages"]["inductor"]["artifacts"]
    assert artifacts["built"] == ["decode:cpu:bf16:l2:b2:s512"]
    assert artifacts["units"] == ["decode:cpu:bf16:l2:b1:s512", "decode:cpu:bf16:l2:b2:s512"]
    assert roots.run("ensure", *ENSURE_TINY, "--run-id", "narrow").stdout.endswith(NOOP)


def test_a_flipped_byte_is_found_by_deep_and_is_to_be_rebuilt(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    library = next(roots.profiles.glob("torchinductor/*/*.main.so"))
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 0xFF
    before = library.stat()
    library.write_bytes(content)
    assert roots.inspect()["torchinductor"]["valid"] is False, "it was written to since"
    os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))  # as where the disk has damaged it
    assert roots.inspect()["torchinductor"]["valid"] is True
    deep = roots.inspect("--deep")["torchinductor"]
    assert (deep["valid"], deep["reason"]) == (False, "hash_mismatch")
    assert library.name in deep["detail"]
    plan = roots.run("ensure", *ENSURE_TINY, "--dry-run")
    assert "inductor: noop" in plan.stdout
    plan = roots.run("ensure", *ENSURE_TINY, "--deep", "--dry-run")
    assert "inductor: build, hash_mismatch" in plan.stdout


def test_two_at_once_build_once(built: Built) -> None:
    stages = {run_id: built.roots.result(run_id)["stages"]["inductor"] for run_id in (built.run_id, built.waiter)}
    assert stages[built.run_id]["status"] == "ok"
    assert (stages[built.waiter]["status"], stages[built.waiter]["ran"]) == ("noop", False)
    waited = [event for event in built.roots.events(built.waiter) if event["phase"] == "wait_lock"]
    assert waited
    assert waited[0]["slug"] == "tiny-dense"
    assert f"run {built.run_id}" in waited[0]["holder"]
    assert waited[0]["held_for_s"] >= 0


def test_a_lock_held_too_long_is_exit_4(built: Built, roots: Roots) -> None:
    (roots.profiles / ".locks").mkdir(parents=True)
    lock = roots.profiles / ".locks" / "tiny-dense.lock"
    holder = subprocess.Popen(["flock", "--no-fork", str(lock), "sleep", "600"])
    try:
        wait_for(lambda: is_held(lock), "flock to hold the lock")
        done = roots.ensure_alone("locked", "2")
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 4, done.stdout + done.stderr
    result = roots.result("locked")
    assert (result["status"], result["errors"][0]["error_type"]) == ("error", "lock_timeout")
    assert result["errors"][0]["stage"] is None
    said = roots.log("locked").read_text(encoding="utf-8").splitlines()[-2]
    assert said.startswith("[OPTIMIZE ensure] error (lock_timeout) in ")
    assert said.endswith("(wait for the named holder, or raise --timeout)")
    assert not roots.marker("tiny-dense", "inductor").exists()


def test_a_lock_that_another_models_build_holds_is_named_and_so_is_the_time_out(roots: Roots) -> None:
    lock = roots.profiles / ".locks" / ".store.lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(["flock", "--no-fork", str(lock), "sleep", "600"])
    try:
        wait_for(lambda: is_held(lock), "flock to hold the lock")
        done = roots.run("ensure", *ENSURE_TINY, "--timeout", "1", "--run-id", "locked")
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 4, done.stdout + done.stderr
    assert "waiting for the lock of another build on this profiles root, held for" in done.stdout
    assert f"rayprep: error [lock_timeout]: lock {lock} still held after" in done.stderr
    assert done.stderr.endswith("(wait for the named holder, or raise --timeout)\n")


def test_a_run_id_that_is_in_use_is_refused(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    shutil.copytree(built.roots.telemetry, roots.telemetry)
    lock = roots.telemetry / "container_runs" / built.run_id / ".lock"
    before = roots.result(built.run_id)
    holder = subprocess.Popen(["flock", "--no-fork", str(lock), "sleep", "600"])
    try:
        wait_for(lambda: is_held(lock), "flock to hold the lock")
        done = roots.run("ensure", *ENSURE_TINY, "--run-id", built.run_id)
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 4
    assert f"container_runs/{built.run_id}/.lock" in done.stderr
    assert roots.result(built.run_id) == before


@pytest.mark.slow
def test_two_models_of_one_name_stand_beside_each_other(built: Built, roots: Roots, tmp_path: Path) -> None:
    built.copy_to(roots)
    other = write_model(tmp_path / "elsewhere" / "tiny-dense", rms_norm_eps=1e-5)
    args = ("--model", str(other), "--batch-size", "1")
    done = roots.run("ensure", *args, "--run-id", "other")
    assert done.returncode == 0, done.stdout + done.stderr
    assert roots.result("other")["stages"]["inductor"]["status"] == "ok"
    assert roots.run("ensure", *ENSURE_TINY).stdout.endswith(NOOP)
    assert roots.run("ensure", *args).stdout.endswith(NOOP)
    sources = {slug["model_source"] for slug in roots.inspect()["torchinductor"]["slugs"]}
    assert len(sources) == 2


def test_a_stage_that_runs_out_of_time_says_so(roots: Roots) -> None:
    done = roots.ensure_alone("slow", "1")
    assert done.returncode == 13
    stage = roots.result("slow")["stages"]["inductor"]
    assert (stage["status"], stage["error_type"], stage["status_code"]) == ("error", "stage_timeout", 13)
    log = roots.log("slow").read_text(encoding="utf-8")
    assert "the stage ran longer than its time-out (raise --timeout)\n" in log
    assert stage["cleanup"]["killed"] is True
    assert Path(stage["artifacts"]["log_file"]["host_path"]).is_file()
    assert stage["artifacts"]["disk_delta_bytes"] >= 0
    assert roots.marker("tiny-dense", "inductor").exists()


def test_heartbeats_come_while_a_stage_is_silent(built: Built) -> None:
    """The fixture asked for one each second."""
    beats = [event for event in built.roots.events(built.run_id) if event.get("hint") == "compiling"]
    assert len(beats) > 3
    gaps = [after["elapsed_s"] - before["elapsed_s"] for before, after in itertools.pairwise(beats)]
    assert min(gaps) > 0.9
