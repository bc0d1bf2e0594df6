"""A reset on real folders: whole entries, never through a link, and nothing half valid whenever it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayprep.host.completions import read_completions, write_completion
from rayprep.host.environment import STORE_MARK
from rayprep.host.layout import Layout
from rayprep.host.markers import Marker, write_marker
from rayprep.host.process import marked_processes
from rayprep.host.reset import preview, reset
from rayprep.model.base import utc_from_timestamp
from rayprep.model.caches import CacheName
from rayprep.model.errors import HostUnfit, LockTimeout
from rayprep.model.reset import ResetReport
from rayprep.model.reset_filters import Filters
from rayprep.model.stages import StageName
from tests.model.samples import DIGEST, completion, identity
from tests.processes import wait_for

DAY = 86400.0
DEEP_GEMM, MOE, FLASHINFER, INDUCTOR, SERVE = StageName
MODULES = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops"


@dataclass(frozen=True)
class Caches:
    """A profiles root that a test fills as the libraries would."""

    layout: Layout

    def file(self, path: str, *, days: float = 0.0, text: str = "12345") -> str:
        whole = self.layout.profiles / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8")
        os.utime(whole, (time.time() - days * DAY,) * 2)
        return path

    def kernel(self, name: str, *, days: float = 0.0) -> tuple[str, ...]:
        return tuple(self.file(f"deep_gemm/cache/{name}/kernel.{end}", days=days) for end in ("cu", "cubin"))

    def module(self, name: str) -> tuple[str, ...]:
        self.file(f"{MODULES}/{name}/build.ninja")
        return (self.file(f"{MODULES}/{name}/{name}.so"),)

    def complete(self, stage: StageName, slug: str, *files: str, **changes: object) -> Path:
        whose = identity(model_slug=slug)
        changes |= {"identity": whose, "artifacts": dict.fromkeys(files, (5, DIGEST))}
        return write_completion(self.layout, completion(stage, **changes))

    def skip(self, stage: StageName, slug: str) -> Path:
        return self.complete(stage, slug, outcome="skipped", reason="no_gpu")

    def mark(self, slug: str, stage: StageName, *, days: float = 0.0) -> Path:
        since = utc_from_timestamp(time.time() - days * DAY)
        write_marker(self.layout, slug, stage, Marker(owner_pid=1, started_at=since, run_id="dead", host="h"))
        return self.layout.marker(slug, stage)

    def there(self, *below: str) -> set[str]:
        top = self.layout.profiles
        files = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}
        return {file for file in files if file.split("/")[0] in (below or tuple(CacheName))}

    def reset(self, said: list[str] | None = None, **filters: object) -> ResetReport:
        said = [] if said is None else said
        return reset(self.layout, Filters.model_validate(filters), "r", said.append, lambda _: True)


@pytest.fixture
def caches(tmp_path: Path) -> Caches:
    (tmp_path / "profiles").mkdir()
    return Caches(Layout(tmp_path / "profiles", tmp_path / "telemetry"))


def paths(report: ResetReport) -> set[str]:
    return {entry.path for entry in report.removed}


def test_only_the_selected_caches_and_whole_entries(caches: Caches) -> None:
    caches.kernel("kernel.a.0")
    caches.file("triton/abc/x.cubin")
    caches.file("moe_configs/configs/triton_3_6_0/E=8.json")
    caches.file("sglang_jit/m/x.so")
    report = caches.reset(stages=[DEEP_GEMM, MOE])
    assert paths(report) == {
        "deep_gemm/cache/kernel.a.0",
        "triton/abc",
        "moe_configs/configs/triton_3_6_0/E=8",
    }
    kernel = next(entry for entry in report.removed if entry.cache is CacheName.DEEP_GEMM)
    assert (kernel.bytes, kernel.files, kernel.slugs) == (10, 2, ())
    assert report.freed_bytes == 20
    assert caches.there() == {"sglang_jit/m/x.so"}
    assert (caches.layout.profiles / "deep_gemm").is_dir()
    assert not (caches.layout.profiles / "deep_gemm" / "cache").exists()


def test_what_was_seen_not_to_work_is_forgotten(caches: Caches) -> None:
    note = caches.complete(StageName.INDUCTOR, "qwen", outcome="unsupported", reason="no server starts")
    caches.reset(stages=[DEEP_GEMM])
    assert note.exists()
    caches.reset(stages=[StageName.INDUCTOR])
    assert not note.exists()


def test_a_servers_caches_go_with_serve(caches: Caches) -> None:
    kernel = caches.kernel("kernel.a.0")
    for path in ("triton/abc/x.cubin", "sglang_jit/m/x.so", "others/cuda/a/b", "torchinductor/ab/cab.so"):
        caches.file(path)
    report = caches.reset(stages=[SERVE])
    assert paths(report) == {"triton/abc", "sglang_jit/m", "others/cuda/a", "torchinductor/ab/cab"}
    assert caches.there() == set(kernel)


def test_without_selection_every_cache_goes(caches: Caches) -> None:
    for cache in CacheName:
        caches.file(f"{cache}/a/b/c/d/e/f/g/h")
    assert {entry.cache for entry in caches.reset().removed} == set(CacheName)
    assert caches.there() == set()


def test_entries_of_nothing_that_a_scan_counts(caches: Caches) -> None:
    caches.file("triton/locked/x.lock")
    caches.file(f"{MODULES}/sampling/build.ninja")
    caches.file("deep_gemm/tmp/1234/kernel.cu")
    (caches.layout.profiles / "deep_gemm" / "cache" / "kernel.empty.0").mkdir(parents=True)
    report = caches.reset(unreferenced=True)
    assert paths(report) == {
        "triton/locked",
        f"{MODULES}/sampling",
        "deep_gemm/tmp/1234",
        "deep_gemm/cache/kernel.empty.0",
    }
    assert caches.there() == set()


def test_files_of_one_name_go_together_with_their_folder(caches: Caches) -> None:
    for name in ("cab.cpp", "cab.main.so", "cab/inner", "other.cpp"):
        caches.file(f"torchinductor/ab/{name}", days=40 if name.startswith("cab") else 0)
    assert paths(caches.reset(older_than_days=30)) == {"torchinductor/ab/cab"}
    assert caches.there() == {"torchinductor/ab/other.cpp"}


def test_a_lock_beside_a_folder_of_its_name_takes_nothing_of_the_folder(caches: Caches) -> None:
    kept = caches.kernel("kernel.a.0")
    caches.file("deep_gemm/cache.lock", days=40)
    assert paths(caches.reset(older_than_days=30)) == {"deep_gemm/cache"}
    assert caches.there() == set(kept)


def test_an_entry_is_as_old_as_its_newest_file_companions_too(caches: Caches) -> None:
    caches.file(f"{MODULES}/used/used.so", days=40)
    caches.file(f"{MODULES}/used/.ninja_log", days=1)
    caches.file(f"{MODULES}/idle/idle.so", days=40)
    caches.file("triton/future/x", days=-40)
    report = caches.reset(older_than_days=30)
    assert paths(report) == {f"{MODULES}/idle"}
    assert 39.9 < report.removed[0].age_days < 40.1
    assert report.kept == {"not_old_enough": 2}


def test_with_a_slug_what_others_name_and_what_nobody_names_stays(caches: Caches) -> None:
    mine, shared, theirs, nobodys = (caches.kernel(f"kernel.{name}.0") for name in ("m", "s", "t", "n"))
    own = caches.complete(DEEP_GEMM, "qwen3-8b", *mine, *shared)
    other = caches.complete(DEEP_GEMM, "llama", *theirs, *shared)
    own_skip, other_skip = caches.skip(FLASHINFER, "qwen3-8b"), caches.skip(FLASHINFER, "llama")
    unselected = caches.skip(INDUCTOR, "qwen3-8b")
    report = caches.reset(match_slug="qwen", stages=[DEEP_GEMM, FLASHINFER])
    assert paths(report) == {"deep_gemm/cache/kernel.m.0"}
    assert report.removed[0].slugs == ("qwen3-8b",)
    assert report.kept == {"named_by_another_slug": 2, "named_by_no_completion": 1}
    assert caches.there() == {*shared, *theirs, *nobodys}
    assert not own.exists()
    assert not own_skip.exists()
    assert other.exists()
    assert other_skip.exists()
    assert unselected.exists()
    assert set(report.completions_dropped) == {
        str(path.relative_to(caches.layout.profiles)) for path in (own, own_skip)
    }


def test_unreferenced_is_what_no_completion_names(caches: Caches) -> None:
    named, nobodys = caches.kernel("kernel.named.0"), caches.kernel("kernel.nobody.0")
    kept = caches.complete(DEEP_GEMM, "qwen", *named)
    marker = caches.mark("qwen", DEEP_GEMM)
    assert paths(caches.reset(unreferenced=True)) == {"deep_gemm/cache/kernel.nobody.0"}
    assert caches.there() == set(named)
    assert kept.exists()
    assert marker.exists()
    assert nobodys


def test_an_old_file_takes_its_completion_along_and_markers_stay(caches: Caches) -> None:
    old, new = caches.kernel("kernel.old.0", days=40), caches.kernel("kernel.new.0")
    gone, kept = caches.complete(DEEP_GEMM, "a", *old, *new), caches.complete(DEEP_GEMM, "b", *new)
    marker = caches.mark("a", DEEP_GEMM, days=50)
    report = caches.reset(older_than_days=30)
    assert caches.there() == set(new)
    assert not gone.exists()
    assert kept.exists()
    assert marker.exists()
    assert report.markers_dropped == ()


def test_markers_of_the_stages_whose_work_goes(caches: Caches) -> None:
    caches.kernel("kernel.half.0")
    marker, other = caches.mark("qwen", DEEP_GEMM, days=1), caches.mark("qwen", INDUCTOR, days=1)
    kept = caches.reset(match_slug="qwen", stages=[DEEP_GEMM])
    assert marker.exists()
    assert "half" in "".join(caches.there())
    assert any(".in_progress/qwen/deep_gemm stays" in warning for warning in kept.warnings)
    report = caches.reset(stages=[DEEP_GEMM])
    assert report.markers_dropped == (".in_progress/qwen/deep_gemm",)
    assert not marker.exists()
    assert other.exists()


@pytest.mark.parametrize("how", ["truncated", "newer"])
def test_an_unreadable_completion_guards_its_stage(caches: Caches, how: str) -> None:
    hidden, loose = caches.kernel("kernel.hidden.0"), caches.file("triton/loose/x")
    path = caches.complete(DEEP_GEMM, "qwen", *hidden)
    text = path.read_text(encoding="utf-8").replace("kernel.hidden.0", "kernel.elsewhere.0")
    newer = json.dumps({**json.loads(text), "schema_version": "99"})
    path.write_text(newer if how == "newer" else text[: len(text) // 2], encoding="utf-8")
    report = caches.reset(unreferenced=True)
    assert caches.there() == set(hidden)
    assert loose not in caches.there()
    assert report.kept == {"completion_unreadable": 1}
    assert any(path.name in warning and "deep_gemm" in warning for warning in report.warnings)
    assert paths(caches.reset(match_slug="llama")) == set()
    assert path.exists()
    caches.reset()
    assert caches.there() == set()
    assert not path.exists()


def test_the_link_to_a_config_goes_with_it(caches: Caches) -> None:
    files = [caches.file(f"moe_configs/configs/triton_3_6_0/E={n}.json") for n in (1, 2)]
    for slug, file in zip(("llama", "qwen"), files, strict=True):
        caches.complete(MOE, slug, file)
        link = caches.layout.profiles / f"moe_configs/configs/active/{slug}.json"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(f"../triton_3_6_0/{Path(file).name}")
    said: list[str] = []
    caches.reset(said, match_slug="qwen")
    assert caches.there() == {files[0], "moe_configs/configs/active/llama.json"}
    assert f"[RESET moe_configs] removed link {link}" in said
    caches.reset(stages=[DEEP_GEMM])
    assert caches.there()
    caches.reset()
    assert list((caches.layout.profiles / "moe_configs").iterdir()) == []


def test_what_a_user_made_stays_and_holds_up_nothing(caches: Caches) -> None:
    kept = caches.file("moe_configs/kept/triton_3_6_0/E=8.json.0123")
    marker = caches.mark("qwen", MOE, days=1)
    path = caches.complete(MOE, "qwen", caches.file("moe_configs/configs/triton_3_6_0/E=8.json"))
    for filters in ({"unreferenced": True}, {"older_than_days": 0.5}, {"match_slug": "qwen"}, {}):
        assert all("kept" not in entry.path for entry in caches.reset(**filters).removed)
    assert (caches.there(), path.exists(), marker.exists()) == ({kept}, False, False)


def test_never_through_a_link(caches: Caches, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "kernel.x.0"
    outside.mkdir(parents=True)
    (outside / "kernel.cu").write_text("mine", encoding="utf-8")
    profiles = caches.layout.profiles
    (profiles / "flashinfer").symlink_to(outside.parent)
    (profiles / "torchinductor").mkdir()
    (profiles / "torchinductor" / "ab").symlink_to(outside.parent)
    (profiles / "triton").mkdir()
    (profiles / "triton" / "entry").symlink_to(outside)
    (profiles / "moe_configs" / "configs").mkdir(parents=True)
    (profiles / "moe_configs" / "configs" / "active").symlink_to(outside.parent)
    (outside.parent / "qwen.json").symlink_to("gone")
    caches.file("deep_gemm/cache/kernel.y.0/kernel.cu")
    (profiles / "deep_gemm" / "cache" / "kernel.y.0" / "linked").symlink_to(outside)
    report = caches.reset()
    assert paths(report) == {"deep_gemm/cache/kernel.y.0"}
    assert (outside / "kernel.cu").read_text(encoding="utf-8") == "mine"
    assert (outside.parent / "qwen.json").is_symlink()
    assert (profiles / "triton" / "entry").is_symlink()
    assert any("flashinfer is a link" in warning for warning in report.warnings)


@pytest.mark.parametrize("ours", [".rayprep", ".rayprep/deep_gemm", ".rayprep/scratch", ".in_progress/qwen"])
def test_completions_and_markers_are_not_dropped_through_a_link(caches: Caches, tmp_path: Path, ours: str) -> None:
    kernel = caches.kernel("kernel.a.0")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "deep_gemm").write_text("mine", encoding="utf-8")
    link = caches.layout.profiles / ours
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(HostUnfit, match="is a link"):
        caches.reset()
    assert (outside / "deep_gemm").exists()
    assert caches.there() == set(kernel)


def test_a_slug_that_leads_out_of_the_root_makes_no_lock_there(caches: Caches, tmp_path: Path) -> None:
    path = caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))
    path.write_text(path.read_text(encoding="utf-8").replace('"qwen"', '"../../escaped"'), encoding="utf-8")
    caches.reset()
    assert not list(tmp_path.rglob("escaped*"))


def test_names_that_are_not_utf8_go_and_are_shown(caches: Caches) -> None:
    folder = caches.layout.profiles / "triton" / os.fsdecode(b"bad\xff")
    caches.file(str(folder.relative_to(caches.layout.profiles) / "x"))
    said: list[str] = []
    assert paths(caches.reset(said)) == {"triton/bad\\xff"}
    assert f"[RESET triton] removed {caches.layout.profiles}/triton/bad\\xff (5 bytes, 1 files)" in said
    assert not os.path.lexists(folder)


def test_every_victim_is_said(caches: Caches) -> None:
    kernel = caches.kernel("kernel.a.0")
    path, marker = caches.complete(DEEP_GEMM, "q", *kernel), caches.mark("q", DEEP_GEMM)
    said: list[str] = []
    caches.reset(said)
    assert said == [
        f"[RESET deep_gemm] removed {caches.layout.profiles}/deep_gemm/cache/kernel.a.0 (10 bytes, 2 files)",
        f"[RESET deep_gemm] dropped completion {path}",
        f"[RESET deep_gemm] dropped marker {marker}",
    ]


def test_a_preview_says_what_a_reset_does_and_does_nothing(caches: Caches) -> None:
    caches.complete(DEEP_GEMM, "q", *caches.kernel("kernel.a.0"))
    caches.mark("q", DEEP_GEMM)
    before = {path: path.lstat().st_mtime_ns for path in caches.layout.profiles.rglob("*")}
    foretold = preview(caches.layout, Filters(), "r")
    assert before == {path: path.lstat().st_mtime_ns for path in caches.layout.profiles.rglob("*")}
    done = caches.reset()
    # Taken at two moments, so only the time and the ages differ.
    assert foretold.completions_dropped == done.completions_dropped != ()
    assert foretold.markers_dropped == done.markers_dropped != ()
    assert (paths(foretold), foretold.freed_bytes) == (paths(done), done.freed_bytes)


def test_no_is_no(caches: Caches) -> None:
    kernel = caches.kernel("kernel.a.0")
    report = reset(caches.layout, Filters(), "r", lambda _: None, lambda plan: not plan.removed)
    assert caches.there() == set(kernel)
    assert (report.removed, report.freed_bytes, report.exit_code) == ((), 0, 0)


HOLD = """
import sys
from pathlib import Path
from rayprep.host.locks import acquire
with acquire([Path(sys.argv[1])], "their-run", 0.0, lambda *_: None, lambda: False):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(lock: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("slug", [None, "qwen", "never-seen"])
def test_refused_while_another_process_holds_a_lock(caches: Caches, slug: str | None) -> None:
    kernel = caches.kernel("kernel.a.0")
    caches.complete(DEEP_GEMM, "qwen", *kernel)
    lock = caches.layout.slug_lock(slug) if slug else caches.layout.store_lock
    with holding(lock) as holder:
        try:
            with pytest.raises(LockTimeout, match=rf"pid {holder.pid} on .*their-run"):
                caches.reset()
            assert any(str(lock) in warning for warning in preview(caches.layout, Filters(), "r").warnings)
        finally:
            holder.communicate()
    assert caches.there() == set(kernel)
    caches.reset()
    assert caches.there() == set()


def test_another_slugs_lock_is_in_nobodys_way(caches: Caches) -> None:
    caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))
    with holding(caches.layout.slug_lock("llama")) as holder:
        try:
            assert len(caches.reset(match_slug="qwen").removed) == 1
        finally:
            holder.communicate()


def test_nobody_else_gets_the_locks_meanwhile(caches: Caches) -> None:
    caches.complete(DEEP_GEMM, "qwen", *caches.kernel("kernel.a.0"))
    seen = []

    def confirm(plan: ResetReport) -> bool:
        for lock in (caches.layout.slug_lock("qwen"), caches.layout.store_lock):
            done = subprocess.run(
                [sys.executable, "-c", HOLD, str(lock)], input="", capture_output=True, text=True, check=False
            )
            seen.append(f"pid {os.getpid()}" in done.stderr and "LockTimeout" in done.stderr)
        return True

    reset(caches.layout, Filters(), "r", lambda _: None, confirm)
    assert seen == [True, True]


def test_refused_while_a_dead_runs_compiler_still_works(caches: Caches) -> None:
    kernel = caches.kernel("kernel.a.0")
    env = {**os.environ, STORE_MARK: str(caches.layout.profiles)}
    with subprocess.Popen(["sleep", "60"], env=env) as compiler:
        try:
            # One that has just begun has no environment yet.
            wait_for(lambda: marked_processes(STORE_MARK, env[STORE_MARK]), "the compiler to have its mark")
            with pytest.raises(HostUnfit, match=f"process {compiler.pid} of a dead run"):
                caches.reset()
        finally:
            compiler.kill()
    assert caches.there() == set(kernel)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that gets SIGKILL just before its `step`th change of the file system."""
    child = os.fork()
    if child == 0:
        changes = iter(range(step, -1, -1))

        def hook(event: str, _: object) -> None:
            if event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir") and next(changes) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not go on as pytest
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_before_any_step_it_leaves_nothing_that_reads_as_valid(caches: Caches) -> None:
    top, kept = caches.layout.profiles, caches.layout.profiles.with_name("kept")
    modules = caches.module("norm") + caches.module("sampling")
    caches.complete(DEEP_GEMM, "a", *caches.kernel("kernel.a.0"), *caches.kernel("kernel.b.0"))
    caches.complete(FLASHINFER, "a", *modules)
    caches.complete(INDUCTOR, "a", caches.file("torchinductor/ab/cab.cpp"), caches.file("torchinductor/ab/cab.so"))
    half = caches.file("deep_gemm/cache/kernel.half.0/kernel.cu")
    marker = caches.mark("a", DEEP_GEMM)
    shutil.copytree(top, kept)
    step = 0
    while killed_at(step, caches.reset):
        there = caches.there()
        for stage in StageName:
            for each in read_completions(caches.layout, stage)[0]:
                assert each.artifacts.keys() <= there
                assert (
                    stage is not FLASHINFER
                    or {f"{MODULES}/{name}/build.ninja" for name in ("norm", "sampling")} <= there
                )
        for name in ("a", "b"):
            assert len([path for path in there if f"/kernel.{name}.0/" in path]) in (0, 2)
        assert half not in there or marker.exists()
        caches.reset()
        assert caches.there() == set()
        assert not (top / ".rayprep" / "scratch").exists()
        assert not list(top.rglob("*.gone"))
        shutil.rmtree(top)
        shutil.copytree(kept, top)
        step += 1
    assert step > 15
    assert caches.there() == set()
