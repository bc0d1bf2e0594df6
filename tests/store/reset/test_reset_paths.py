"""A reset where paths are odd: never through a link, never out of the root."""

import os
from pathlib import Path

import pytest

from rayprep.base.errors import HostUnfit
from tests.store.reset.caches import DEEP_GEMM, Caches, paths


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
