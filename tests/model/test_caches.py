"""The table of caches: variables, what each file is, and which files are one entry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.caches import CACHES, CacheName, FileKind, classify, entry_of

NAMES = st.text("abz09._-", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=8).map("/".join)
CACHE = st.sampled_from(list(CacheName))


def test_every_variable_of_the_contract_and_every_one_really_read_is_exported() -> None:
    exported = {variable for facts in CACHES.values() for variable in facts.env}
    contract = {
        *("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_DIR"),
        *("SGLANG_DG_CACHE_DIR", "SGLANG_MOE_CONFIG_DIR"),
    }
    really_read = {
        *("FLASHINFER_WORKSPACE_BASE", "TVM_FFI_CACHE_DIR", "SGLANG_JIT_CACHE_DIR", "SGLANG_CACHE_DIR"),
        *("CUDA_CACHE_PATH", "CUTE_DSL_CACHE_DIR", "TILELANG_CACHE_DIR", "QUACK_CACHE_DIR", "HUMMING_CACHE_DIR"),
        *("CUDA_TILE_CACHE_DIR", "TORCH_EXTENSIONS_DIR"),
    }
    assert contract | really_read <= exported


def test_no_two_caches_share_a_variable() -> None:
    variables = [variable for facts in CACHES.values() for variable in facts.env]
    assert len(variables) == len(set(variables))


def test_every_cache_has_facts() -> None:
    assert set(CACHES) == set(CacheName)
    assert [cache.value for cache in CacheName][:5] == [
        "triton",
        "torchinductor",
        "flashinfer",
        "deep_gemm",
        "moe_configs",
    ]


BUILD = "sm90a/sgl_kernel_jit_norm/build-12ab"
FLASHINFER_OP = ".cache/flashinfer/0.6.14/90a/cached_ops/norm"


@pytest.mark.parametrize(
    ("cache", "path", "kind"),
    [
        ("triton", "KEY/kernel.cubin", FileKind.ARTIFACT),
        ("triton", "KEY/__grp__kernel.json", FileKind.ARTIFACT),
        ("triton", "KEY/kernel.lock", FileKind.VOLATILE),
        ("triton", "KEY/tmp.pid_7_1e32/kernel.cubin", FileKind.VOLATILE),
        ("triton", "tmp.beb71e32-2ff7-450e-af47-77348b916ff9/kernel.json", FileKind.VOLATILE),
        ("triton", "tmp.cubin", FileKind.ARTIFACT),
        ("torchinductor", "fxgraph/ab/key/hash", FileKind.ARTIFACT),
        ("torchinductor", "locks/anything", FileKind.VOLATILE),
        ("torchinductor", "ab/cab.so", FileKind.ARTIFACT),
        ("torchinductor", "ab/.123.456.tmp", FileKind.VOLATILE),
        ("flashinfer", f"{FLASHINFER_OP}/norm.so", FileKind.ARTIFACT),
        ("flashinfer", f"{FLASHINFER_OP}/build.ninja", FileKind.COMPANION),
        ("flashinfer", f"{FLASHINFER_OP}/.ninja_log", FileKind.COMPANION),
        ("flashinfer", f"{FLASHINFER_OP}/.ninja_deps", FileKind.COMPANION),
        ("deep_gemm", "cache/kernel.x.1/kernel.cubin", FileKind.ARTIFACT),
        ("deep_gemm", "tmp/1234/kernel.cu", FileKind.VOLATILE),
        ("deep_gemm", "cache/build.ninja", FileKind.ARTIFACT),
        ("moe_configs", "configs/triton_3_6_0/E=128.json", FileKind.ARTIFACT),
        ("sglang_jit", "mod/mod.so", FileKind.ARTIFACT),
        ("sglang_jit", "mod/lock/x", FileKind.VOLATILE),
        ("sglang_jit", f"{BUILD}/deps-9f/sgl_kernel_jit_norm.so", FileKind.ARTIFACT),
        ("sglang_jit", f"{BUILD}/deps-9f/sgl_deps.json", FileKind.ARTIFACT),
        ("sglang_jit", f"{BUILD}/deps-9f/build.ninja", FileKind.COMPANION),
        ("sglang_jit", f"{BUILD}/.lock", FileKind.VOLATILE),
        ("sglang_jit", f"{BUILD}/.staging-1e32/sgl_kernel_jit_norm.so", FileKind.VOLATILE),
        ("others", "sglang/some.log", FileKind.VOLATILE),
    ],
)
def test_each_file_is_what_it_is(cache: str, path: str, kind: FileKind) -> None:
    assert classify(CacheName(cache), tuple(path.split("/"))) is kind


@pytest.mark.parametrize(
    ("cache", "files", "entry"),
    [
        ("triton", ["KEY/a.cubin", "KEY/a.ptx", "KEY/sub/b.json"], "KEY"),
        ("torchinductor", ["ab/cab.cpp", "ab/cab.so", "ab/cab.main.so", "ab/cab/data"], "ab/cab"),
        ("torchinductor", ["fxgraph/zz/key/1", "fxgraph/zz/key/2"], "fxgraph/zz/key"),
        ("torchinductor", ["aotautograd/key/1", "aotautograd/key/local/2"], "aotautograd/key"),
        ("flashinfer", [f"{FLASHINFER_OP}/norm.so", f"{FLASHINFER_OP}/build.ninja"], FLASHINFER_OP),
        ("deep_gemm", ["cache/kernel.x.1/kernel.cu", "cache/kernel.x.1/kernel.cubin"], "cache/kernel.x.1"),
        ("moe_configs", ["configs/triton_3_6_0/E=128,N=768.json"], "configs/triton_3_6_0/E=128,N=768"),
        ("sglang_jit", ["norm__arch_9.0a/norm.so", "norm__arch_9.0a/sub/x"], "norm__arch_9.0a"),
        ("sglang_jit", [f"{BUILD}/deps-9f/x.so", f"{BUILD}/deps-9f/sgl_deps.json", f"{BUILD}/deps-a0/x.so"], BUILD),
        ("others", ["cuda/ab/1", "cuda/ab/2"], "cuda/ab"),
        ("triton", [".hidden"], ".hidden"),
    ],
)
def test_files_that_belong_together_are_one_entry(cache: str, files: list[str], entry: str) -> None:
    assert {entry_of(CacheName(cache), file) for file in files} == {entry}


@pytest.mark.parametrize(
    ("cache", "one", "other"),
    [
        ("torchinductor", "ab/cab.cpp", "ab/cac.cpp"),
        ("torchinductor", "fxgraph/zz/key/1", "fxgraph/zz/other/1"),
        ("deep_gemm", "cache/kernel.x.1/kernel.cu", "cache/kernel.x.2/kernel.cu"),
        ("triton", "KEY1/a", "KEY2/a"),
        ("moe_configs", "configs/triton_3_6_0/a.json", "configs/triton_3_5_0/a.json"),
        ("sglang_jit", f"{BUILD}/deps-9f/x.so", "sm90a/sgl_kernel_jit_rope/build-12ab/deps-9f/x.so"),
        ("sglang_jit", f"{BUILD}/deps-9f/x.so", "sm90a/sgl_kernel_jit_norm/build-34cd/deps-9f/x.so"),
    ],
)
def test_files_of_different_things_are_different_entries(cache: str, one: str, other: str) -> None:
    assert entry_of(CacheName(cache), one) != entry_of(CacheName(cache), other)


@given(CACHE, PATHS)
def test_an_entry_names_a_place_that_its_file_starts_with(cache: CacheName, path: str) -> None:
    entry = entry_of(cache, path)
    assert entry
    assert path.startswith(entry)
    assert len(entry.split("/")) <= len(path.split("/"))


@given(CACHE, PATHS, NAMES, NAMES)
def test_whatever_lies_below_an_entry_that_is_a_folder_belongs_to_it(
    cache: CacheName, path: str, one: str, two: str
) -> None:
    entry = entry_of(cache, f"{path}/{one}")
    if path.startswith(entry):
        assert entry_of(cache, f"{path}/{two}") == entry
        assert entry_of(cache, f"{path}/{one}/{two}") == entry


@given(CACHE, PATHS)
def test_a_file_beside_another_of_its_stem_is_in_the_same_entry(cache: CacheName, path: str) -> None:
    folder, _, name = path.rpartition("/")
    stem = name.split(".", 1)[0]
    if stem:
        twin = f"{folder}/{stem}.twin" if folder else f"{stem}.twin"
        assert entry_of(cache, twin) == entry_of(cache, path)
