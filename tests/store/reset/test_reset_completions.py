"""A reset among completions and markers: what they name, and which of them go."""

import json

import pytest

from tests.store.reset.caches import DEEP_GEMM, FLASHINFER, INDUCTOR, Caches, paths


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
