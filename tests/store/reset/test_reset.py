"""A reset on real folders: which entries go, whole, and what is said of them."""

from pathlib import Path

from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.remove import preview, reset
from tests.store.reset.caches import DEEP_GEMM, MODULES, MOE, SERVE, Caches, paths


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


def test_of_sglangs_modules_one_build_is_an_entry(caches: Caches) -> None:
    norm, rope = (f"sglang_jit/sm90a/{module}/build-1" for module in ("norm", "rope"))
    listed = caches.file(f"{norm}/deps-2/norm.so")
    for path in (f"{norm}/.lock", f"{rope}/deps-3/rope.so", f"{rope}/.lock", f"{rope}/.staging-4/rope.so"):
        caches.file(path)
    caches.complete(SERVE, "qwen", listed)
    assert paths(caches.reset(stages=[SERVE], unreferenced=True)) == {rope}
    assert caches.there() == {listed, f"{norm}/.lock"}


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


def test_why_a_config_was_withdrawn_outlives_every_reset(caches: Caches) -> None:
    """Or the next run would put it before servers again."""
    home = "moe_configs/tuning/0123456789abcdef"
    kept = {caches.file(f"{home}.withdrawn/{name}") for name in ("reason.json", "E=8,N=64.json")}
    caches.file(f"{home}/measurements.jsonl")
    for filters in ({"unreferenced": True}, {"older_than_days": 0.0}, {}):
        caches.reset(**filters)
        assert caches.there() == kept


def test_what_a_user_made_stays_and_holds_up_nothing(caches: Caches) -> None:
    kept = caches.file("moe_configs/kept/triton_3_6_0/E=8.json.0123")
    marker = caches.mark("qwen", MOE, days=1)
    path = caches.complete(MOE, "qwen", caches.file("moe_configs/configs/triton_3_6_0/E=8.json"))
    for filters in ({"unreferenced": True}, {"older_than_days": 0.5}, {"match_slug": "qwen"}, {}):
        assert all("kept" not in entry.path for entry in caches.reset(**filters).removed)
    assert (caches.there(), path.exists(), marker.exists()) == ({kept}, False, False)


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
