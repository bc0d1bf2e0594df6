"""`rayprep reset` as a user runs it: what it asks, prints, logs, refuses and returns."""

import json
import os
import pty
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rayprep.client import needs_prep, read_manifest
from rayprep.host.layout import Layout
from rayprep.host.manifest_file import write_manifest
from rayprep.model.container_manifest import MANIFEST_NAME, ProfileCache
from rayprep.model.stages import StageName
from rayprep.store.reset.report import ResetReport
from tests.conftest import Roots
from tests.model.test_container_manifest import manifest
from tests.needs import needs_tool
from tests.processes import wait_for
from tests.store.reset.caches import Caches, holding
from tests.test_client import warm

DEEP_GEMM, MOE = StageName.DEEP_GEMM, StageName.MOE_TUNE


@pytest.fixture
def caches(roots: Roots) -> Caches:
    roots.profiles.mkdir()
    return Caches(Layout(roots.profiles, roots.telemetry))


@pytest.fixture
def kernel(caches: Caches) -> Path:
    """The completion of one kernel of `qwen`."""
    return caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))


def report(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(done.stdout)
    ResetReport.model_validate(loaded)
    return loaded


def everything(base: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in base.rglob("*")}


def test_the_report_and_the_log(roots: Roots, caches: Caches, kernel: Path) -> None:
    caches.file("triton/abc/x.cubin", days=2)
    done = roots.run("reset", "--yes", "--json", "--run-id", "clean")
    assert done.returncode == 0, done.stderr
    said = report(done)
    assert (said["schema_version"], said["run_id"], said["dry_run"], said["freed_bytes"]) == ("1", "clean", False, 15)
    removed = {entry["path"]: entry for entry in said["removed"]}
    assert removed.keys() == {"triton/abc", "deep_gemm/cache/kernel.a.0"}
    triton = removed["triton/abc"]
    assert (triton["cache"], triton["bytes"], triton["files"], triton["slugs"]) == ("triton", 5, 1, [])
    assert 2 <= triton["age_days"] < 2.1
    assert removed["deep_gemm/cache/kernel.a.0"]["slugs"] == ["qwen"]
    assert said["completions_dropped"] == [f".rayprep/deep_gemm/{kernel.name}"]
    assert (said["markers_dropped"], said["kept"], said["warnings"]) == ([], {}, [])
    log = (roots.telemetry / "logs" / "clean.log").read_text(encoding="utf-8").splitlines()
    assert f"[RESET triton] removed {roots.profiles}/triton/abc (5 bytes, 1 files)" in log
    assert f"[RESET deep_gemm] removed {roots.profiles}/deep_gemm/cache/kernel.a.0 (10 bytes, 2 files)" in log
    assert caches.there() == set()


def test_the_runs_name_is_made_from_the_time(roots: Roots, kernel: Path) -> None:
    assert roots.run("reset", "--yes").returncode == 0
    (log,) = (roots.telemetry / "logs").iterdir()
    stem, moment, digits = log.stem.split("-")
    assert (stem, len(moment), len(digits)) == ("reset", len("20261009T011200Z"), 4)


def test_a_dry_run_changes_no_file_and_tells_the_truth(roots: Roots, caches: Caches, kernel: Path) -> None:
    before = everything(roots.profiles)
    foretold = report(roots.run("reset", "--dry-run", "--json"))
    assert everything(roots.profiles) == before
    assert not roots.telemetry.exists()
    assert foretold["dry_run"] is True
    done = report(roots.run("reset", "--yes", "--json"))
    assert foretold["completions_dropped"] == done["completions_dropped"] != []
    assert [entry["path"] for entry in foretold["removed"]] == [entry["path"] for entry in done["removed"]]


def test_triton_and_moe_are_one_selection(roots: Roots, caches: Caches, kernel: Path) -> None:
    caches.file("triton/abc/x")
    caches.file("moe_configs/configs/triton_3_6_0/E=8.json")
    caches.file("torchinductor/ab/x.so")
    caches.file("flashinfer/.cache/flashinfer/1/90a/cached_ops/m/m.so")
    for flag, gone in (
        ("--triton", {"triton", "moe_configs"}),
        ("--moe", {"triton", "moe_configs"}),
        ("--deep-gemm", {"deep_gemm"}),
        ("--flashinfer", {"flashinfer"}),
        ("--inductor", {"torchinductor"}),
    ):
        assert {entry["cache"] for entry in report(roots.run("reset", "--dry-run", "--json", flag))["removed"]} == gone


def test_filters_combine_with_and(roots: Roots, caches: Caches) -> None:
    for slug in ("qwen", "llama"):
        for days in (1, 40):
            caches.complete(DEEP_GEMM, f"{slug}{days}", *caches.kernel(f"kernel.{slug}.{days}", days=days))
    caches.kernel("kernel.nobody.40", days=40)
    args = ("--yes", "--json", "--older-than", "30", "--match-slug", "qwen", "--deep-gemm")
    said = report(roots.run("reset", *args))
    assert [entry["path"] for entry in said["removed"]] == ["deep_gemm/cache/kernel.qwen.40"]
    assert len(said["completions_dropped"]) == 1
    assert said["kept"] == {"named_by_another_slug": 2, "named_by_no_completion": 1, "not_old_enough": 1}


@pytest.mark.parametrize(
    "args",
    [
        ("--older-than", "0"),
        ("--older-than", "-3"),
        ("--older-than", "nan"),
        ("--older-than", "soon"),
        ("--match-slug", ""),
        ("--run-id", "../../x"),
        ("--no-such-flag",),
    ],
)
def test_a_bad_request_is_refused_before_anything(roots: Roots, caches: Caches, args: tuple[str, ...]) -> None:
    files = caches.kernel("kernel.a.0")
    done = roots.run("reset", "--yes", *args)
    assert done.returncode == 2
    assert caches.there() == set(files)
    assert not roots.telemetry.exists()


def test_without_a_terminal_it_does_not_guess(roots: Roots, caches: Caches, kernel: Path) -> None:
    done = roots.run("reset")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--yes" in done.stderr
    assert kernel.exists()
    assert roots.run("reset", "--dry-run").returncode == 0


def answer(roots: Roots, text: str, *args: str) -> "subprocess.CompletedProcess[str]":
    """Runs with a real terminal as its input, and types `text`."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, text.encode())
        return subprocess.run(
            roots.command("reset", *args),
            env=roots.env,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("text", "goes"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(roots: Roots, kernel: Path, text: str, goes: bool) -> None:
    done = answer(roots, text, "--json")
    assert done.returncode == 0, done.stderr
    assert "[y/N]" in done.stderr
    assert "deep_gemm" in done.stderr
    assert len(report(done)["removed"]) == int(goes)
    assert kernel.exists() is not goes


def test_it_does_not_ask_when_nothing_would_go(roots: Roots, caches: Caches) -> None:
    done = answer(roots, "")
    assert done.returncode == 0
    assert "[y/N]" not in done.stderr


def test_for_people(roots: Roots, caches: Caches, kernel: Path) -> None:
    caches.complete(DEEP_GEMM, "llama", *caches.kernel("kernel.b.0"))
    out = roots.run("reset", "--match-slug", "qwen", "--yes").stdout
    assert len(out.splitlines()) == 4
    for part in ("deep_gemm", "1 entries", "2 files", kernel.name, "named by another slug"):
        assert part in out


@pytest.mark.parametrize("slug", ["qwen", None])
def test_refused_while_a_lock_is_held(roots: Roots, caches: Caches, kernel: Path, slug: str | None) -> None:
    before = caches.there()
    with holding(caches.layout.slug_lock(slug) if slug else caches.layout.store_lock) as holder:
        try:
            done = roots.run("reset", "--yes")
            looked = roots.run("reset", "--dry-run")
        finally:
            holder.communicate()
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert f"pid {holder.pid} on" in done.stderr
    assert "their-run" in done.stderr
    assert caches.there() == before
    assert kernel.exists()
    assert looked.returncode == 0
    assert f"pid {holder.pid} on" in looked.stdout


def as_nobody_special(command: Sequence[str]) -> list[str]:
    """Root may write anywhere; without its capabilities it is like any owner of its files."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command] if os.getuid() == 0 else list(command)


@needs_tool("setpriv")
@pytest.mark.parametrize("sealed", ["cache/kernel.stays.0", "cache", "cache/kernel.stays.0/deep"])
def test_what_cannot_be_removed_is_said_and_keeps_its_completion(roots: Roots, caches: Caches, sealed: str) -> None:
    stays, goes = caches.kernel("kernel.stays.0"), caches.file("triton/goes/x")
    caches.file("deep_gemm/cache/kernel.stays.0/deep/x")
    kept = caches.complete(DEEP_GEMM, "a", *stays)
    dropped = caches.complete(MOE, "a", goes)
    text, folder = kept.read_bytes(), roots.profiles / "deep_gemm" / sealed
    marker, finished = caches.mark("a", DEEP_GEMM, days=1), caches.mark("a", MOE, days=1)
    folder.chmod(0o500)
    try:
        done = subprocess.run(
            as_nobody_special(roots.command("reset", "--yes", "--json")),
            env=roots.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        folder.chmod(0o700)
    assert done.returncode == 3, done.stderr
    said = report(done)
    assert [entry["path"] for entry in said["removed"]] == ["triton/goes"]
    assert (said["kept"], said["complete"], said["freed_bytes"]) == ({"could_not_be_removed": 1}, False, 5)
    assert "kernel.stays.0 could not be removed: Permission denied" in said["warnings"][0]
    assert caches.there() == {*stays, "deep_gemm/cache/kernel.stays.0/deep/x"}
    assert kept.read_bytes() == text
    assert not dropped.exists()
    assert marker.exists()
    assert not finished.exists()


@needs_tool("setpriv")
def test_files_stay_with_a_completion_that_cannot_be_dropped(roots: Roots, caches: Caches, kernel: Path) -> None:
    before = caches.there()
    kernel.parent.chmod(0o500)
    try:
        done = subprocess.run(
            as_nobody_special(roots.command("reset", "--yes")), env=roots.env, capture_output=True, check=False
        )
    finally:
        kernel.parent.chmod(0o700)
    assert done.returncode == 3
    assert kernel.exists()
    assert caches.there() == before


def test_reset_that_is_killed_in_the_middle_has_told_the_manifest(roots: Roots, caches: Caches, kernel: Path) -> None:
    folder = roots.telemetry / "container_runs" / "container-run-1"
    located = {"container_path": str(folder / MANIFEST_NAME), "host_path": str(folder / MANIFEST_NAME)}
    here = {"container_path": str(roots.telemetry), "host_path": str(roots.telemetry)}
    warm_start = ProfileCache(start=warm("qwen"))
    write_manifest(manifest(manifest=located, telemetry_root=here, profile_cache=warm_start))
    found = [caches.file(f"triton/{number:04}/kernel") for number in range(3000)]
    process = roots.start("reset", "--yes", "--run-id", "stuck")
    try:
        # Not by a walk: folders go meanwhile.
        first = roots.profiles / found[0]
        wait_for(lambda: not first.exists(), "the first file to go")
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert (roots.profiles / found[-1]).exists(), "it was in the middle"
    assert needs_prep(read_manifest(folder / MANIFEST_NAME), "qwen", tp=8) == {DEEP_GEMM: "reset"}


def test_a_root_that_is_not_there_is_not_made(roots: Roots) -> None:
    done = roots.run("reset", "--yes")
    assert done.returncode == 0
    assert "is not there" in done.stdout
    assert not roots.profiles.exists()
