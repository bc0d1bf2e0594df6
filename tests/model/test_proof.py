"""What a proof makes of the files that it finds: whose they are, what they are called, and how it is said."""

import pytest

from rayprep.model.caches import CacheName
from rayprep.model.proof import home_file, in_words, new_file, new_files
from rayprep.model.stages import StageName

OPS = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops"


@pytest.mark.parametrize(
    ("path", "kernel", "stage"),
    [
        # Triton's folder is a hash, and the file in it has the kernel's name.
        ("triton/Q3XZ/fused_moe_kernel.cubin", "fused_moe_kernel", StageName.SERVE),
        ("triton/Q3XZ/__grp__fused_moe_kernel.json", "__grp__fused_moe_kernel", StageName.SERVE),
        # Of the others it is the folder that has a name.
        (f"{OPS}/norm/norm.cuda.o", "norm", StageName.FLASHINFER),
        ("deep_gemm/cache/kernel.sm90_fp8_gemm_1d2d.0123/kernel.cubin", "kernel.sm90_fp8_gemm_1d2d.0123", "deep_gemm"),
        ("sglang_jit/sgl_kernel_jit_norm_9f/x.so", "sgl_kernel_jit_norm_9f", StageName.SERVE),
        ("sglang_jit/sm90a/sgl_kernel_jit_norm/build-12ab/deps-9f/x.so", "sgl_kernel_jit_norm", StageName.SERVE),
        ("others/cuda/5/d/5d1f", "5", StageName.SERVE),
        ("moe_configs/configs/triton_3_6_0/E=8,N=768.json", "E=8,N=768", StageName.MOE_TUNE),
        # A server has Inductor compile small graphs, whoever asked for what.
        ("torchinductor/fxgraph/zz/key/graph", "key", StageName.SERVE),
        ("torchinductor/ab/cabc.py", "cabc", StageName.SERVE),
    ],
)
def test_a_file_has_a_kernel_and_a_stage(path: str, kernel: str, stage: StageName) -> None:
    got = new_file(path)
    assert (got.cache, got.path, got.kernel, got.stage) == (path.partition("/")[0], path, kernel, stage)


@pytest.mark.parametrize("cache", CacheName)
def test_every_cache_has_a_stage_that_should_have_built(cache: CacheName) -> None:
    assert new_file(f"{cache}/a/b/c/d/e/f/g").stage is not None


def test_what_was_made_or_altered_is_new() -> None:
    made = ["triton/B/made.json", "triton/A/altered.json"]
    assert [each.path for each in new_files(made, ())] == ["triton/A/altered.json", "triton/B/made.json"]
    assert new_files((), ()) == ()


def test_of_a_home_every_file_counts_but_locks_and_logs() -> None:
    home = [".nv/index", ".cache/x/kernel.so", ".cache/x/kernel.so.lock", ".cache/x/build.log", "tmp/scratch"]
    got = new_files(["triton/A/k.json"], home)
    assert [each.path for each in got] == ["triton/A/k.json", ".cache/x/kernel.so", ".nv/index"]
    assert got[1] == home_file(".cache/x/kernel.so")
    assert (got[1].cache, got[1].kernel, got[1].stage) == ("home", "kernel.so", None)


def test_words_name_the_first_of_each_cache() -> None:
    paths = (f"{OPS}/norm/norm.so", f"{OPS}/rope/rope.so", "triton/A/moe.cubin")
    assert in_words([*map(new_file, paths), home_file(".nv/index")]) == (
        "flashinfer: norm, which flashinfer should have built; triton: moe, which serve should have built; home: index"
    )
    assert in_words(()) == ""
