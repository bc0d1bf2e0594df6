"""What a server does to the caches, seen on real files."""

import os
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.store.cache_watch import CacheWatch, entry_name
from tests.store.caches import fill, layout_in

FILES = {
    "triton/A/k.cubin": "one",
    "triton/A/k.json": "two",
    "triton/B/k.cubin": "three",
    "deep_gemm/cache/kernel.x/kernel.cu": "four",
    "deep_gemm/cache/kernel.x/kernel.cubin": "five",
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = layout_in(tmp_path)
    fill(layout, FILES)
    return layout


def test_nothing_done_is_nothing_seen(layout: Layout) -> None:
    use = CacheWatch(layout, CacheName).look()
    assert (use.new, use.rewritten, use.made) == ((), (), ())
    assert use.files.keys() == FILES.keys()
    assert use.read == (frozenset() if use.tells_reads else FILES.keys())


def test_what_is_read_counts_with_the_rest_of_its_entry(layout: Layout) -> None:
    watch = CacheWatch(layout, CacheName)
    (layout.profiles / "triton/A/k.json").read_text(encoding="utf-8")
    use = watch.look()
    if not use.tells_reads:
        pytest.skip("this file system keeps no access times")
    assert use.read == {"triton/A/k.cubin", "triton/A/k.json"}
    assert use.within([CacheName.DEEP_GEMM]) == frozenset()


def test_of_sglangs_modules_only_the_one_that_is_read_counts(layout: Layout) -> None:
    norm, rope = (f"sglang_jit/sm90a/{module}/build-1/deps-2" for module in ("norm", "rope"))
    fill(layout, {f"{norm}/norm.so": "one", f"{norm}/sgl_deps.json": "two", f"{rope}/rope.so": "three"})
    watch = CacheWatch(layout, CacheName)
    (layout.profiles / norm / "norm.so").read_text(encoding="utf-8")
    use = watch.look()
    if not use.tells_reads:
        pytest.skip("this file system keeps no access times")
    assert use.read == {f"{norm}/norm.so", f"{norm}/sgl_deps.json"}


def test_what_is_made_is_new_and_counts_as_read(layout: Layout) -> None:
    watch = CacheWatch(layout, CacheName)
    fill(layout, {"triton/C/k.cubin": "six", "triton/B/k.cubin": "longer than before"})
    use = watch.look()
    assert use.new == ("triton/B/k.cubin", "triton/C/k.cubin")
    assert use.made == ("triton/B", "triton/C")
    assert use.read >= set(use.new)


def test_what_is_written_again_at_the_same_size_is_told_apart(layout: Layout) -> None:
    watch = CacheWatch(layout, CacheName)
    file = layout.profiles / "triton/A/k.cubin"
    written = file.stat().st_mtime_ns
    file.write_text("eno", encoding="utf-8")
    os.utime(file, ns=(written, written + 10**9))
    use = watch.look()
    assert (use.new, use.rewritten) == ((), ("triton/A/k.cubin",))


def test_only_the_caches_that_were_asked_for(layout: Layout) -> None:
    watch = CacheWatch(layout, [CacheName.TRITON])
    fill(layout, {"deep_gemm/cache/kernel.y/kernel.cu": "new"})
    assert watch.look().new == ()


def test_an_entry_has_its_caches_name() -> None:
    assert entry_name("deep_gemm/cache/kernel.x/kernel.cu") == "deep_gemm/cache/kernel.x"
    assert entry_name("triton/A/k.json") == "triton/A"
