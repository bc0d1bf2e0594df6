"""The caches under a profiles root: their folders, the variables that lead libraries there, what their files are.

The variables are those that each library really reads, which is not always what the seed contract names: where
the two differ, both are exported. Sources: the libraries' own code at the versions of the `sglang` extra.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class CacheName(StrEnum):
    """A folder under the profiles root."""

    TRITON = "triton"
    TORCHINDUCTOR = "torchinductor"
    FLASHINFER = "flashinfer"
    DEEP_GEMM = "deep_gemm"
    MOE_CONFIGS = "moe_configs"
    SGLANG_JIT = "sglang_jit"
    OTHERS = "others"


Entry = tuple[CacheName, str]
"""A cache and the entry's path below its folder."""


class FileKind(StrEnum):
    """What a file in a cache is to us."""

    ARTIFACT = "artifact"
    """Counted, hashed, shipped; what a completion lists."""
    COMPANION = "companion"
    """Kept and shipped, but rewritten by use, so neither counted nor hashed."""
    VOLATILE = "volatile"
    """Locks, logs, scratch: never looked at."""


@dataclass(frozen=True)
class CacheFacts:
    """What rayprep knows of one cache.

    `env` maps a variable to a folder below the cache's own ("" is the folder itself). `entry_depth` is how many
    path parts name one whole entry, the unit that is removed or moved aside, by a pattern of the first part; files
    nearer to the root than that belong to the entry that their name without suffixes gives.
    """

    env: dict[str, str]
    entry_depth: Mapping[str, int] = field(default_factory=dict)
    default_depth: int = 1
    companion_names: frozenset[str] = frozenset()
    empty_names: frozenset[str] = frozenset()
    """Artifacts that have no content when they are whole."""
    volatile_suffixes: tuple[str, ...] = (".lock", ".log", ".tmp")
    volatile_names: frozenset[str] = frozenset()
    volatile_dirs: frozenset[str] = frozenset({"tmp", "locks", "lock"})
    volatile_dir_prefixes: tuple[str, ...] = ("tmp.",)
    """Triton's, and those that TorchInductor leaves beside Triton's entries where two ranks write the same one."""
    users_dir: str | None = None
    """A folder right below the cache's that no reset looks into: a user made what lies there, and no run would."""
    reasons: str | None = None
    """How the names of folders end that no reset looks into: they say why something is not in the cache."""


_NINJA = frozenset({".ninja_log", ".ninja_deps", "build.ninja"})

_OTHER_LIBRARIES = {
    "SGLANG_CACHE_DIR": "sglang",
    "CUDA_CACHE_PATH": "cuda",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",
    "TILELANG_CACHE_DIR": "tilelang",
    "QUACK_CACHE_DIR": "quack",
    "HUMMING_CACHE_DIR": "humming",
    "CUDA_TILE_CACHE_DIR": "cuda_tile",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}

CACHES: dict[CacheName, CacheFacts] = {
    CacheName.TRITON: CacheFacts(env={"TRITON_CACHE_DIR": ""}),
    CacheName.TORCHINDUCTOR: CacheFacts(
        env={"TORCHINDUCTOR_CACHE_DIR": ""},
        # fxgraph/<2 letters>/<key>/, aotautograd/<key>/; code folders hold files of one stem each.
        entry_depth={"fxgraph": 3, "aotautograd": 2},
        default_depth=2,
    ),
    CacheName.FLASHINFER: CacheFacts(
        # FLASHINFER_WORKSPACE_DIR is the contract's name and is read by nobody; _BASE is what the library reads.
        env={"FLASHINFER_WORKSPACE_BASE": "", "FLASHINFER_WORKSPACE_DIR": ""},
        # .cache/flashinfer/<version>/<arch>/{cached_ops,generated}/<module>/
        default_depth=6,
        companion_names=_NINJA,
    ),
    CacheName.DEEP_GEMM: CacheFacts(
        # sglang overwrites DG_JIT_CACHE_DIR with SGLANG_DG_CACHE_DIR; a process without sglang reads only the former.
        env={"SGLANG_DG_CACHE_DIR": "", "DG_JIT_CACHE_DIR": ""},
        default_depth=2,  # cache/<kernel>/
        empty_names=frozenset({".committed"}),  # of DeepGEMM 0.2
    ),
    CacheName.MOE_CONFIGS: CacheFacts(
        env={"SGLANG_MOE_CONFIG_DIR": ""},
        default_depth=3,  # configs/triton_<version>/<file>.json
        # A tuner's log and kernels; the links to the files in use, which every host makes for itself; a user's files.
        volatile_dirs=frozenset({"tmp", "locks", "lock", "tuning", "active", "kept"}),
        users_dir="kept",
        reasons=".withdrawn",
    ),
    CacheName.SGLANG_JIT: CacheFacts(
        # tvm_ffi's for all of SGLang's modules until 0.5.17, and for others'; SGLang's own from 0.5.18 on.
        env={"TVM_FFI_CACHE_DIR": "", "SGLANG_JIT_CACHE_DIR": ""},
        # tvm_ffi's: <module>__arch_<arch>__tvmffi_<version>/, built by ninja in place. SGLang's own:
        # sm90a/<module>/build-<key>/{.lock, deps-<key>/<module>.so}, built in .staging-<uuid>/ and renamed.
        entry_depth={r"sm\d+[a-z]?": 3},
        companion_names=_NINJA,
        volatile_names=frozenset({"lock"}),
        volatile_dir_prefixes=("tmp.", ".staging-"),
    ),
    CacheName.OTHERS: CacheFacts(env=_OTHER_LIBRARIES, default_depth=2),
}


def classify(cache: CacheName, parts: tuple[str, ...]) -> FileKind:
    """What the file at `parts` (path parts below the cache's folder) is."""
    facts = CACHES[cache]
    name = parts[-1]
    if (
        name.endswith(facts.volatile_suffixes)
        or name in facts.volatile_names
        or not facts.volatile_dirs.isdisjoint(parts[:-1])
        or any(part.startswith(facts.volatile_dir_prefixes) for part in parts[:-1])
    ):
        return FileKind.VOLATILE
    return FileKind.COMPANION if name in facts.companion_names else FileKind.ARTIFACT


def may_be_empty(path: str) -> bool:
    """Tell whether the artifact at this path below the profiles root is whole without content."""
    cache, _, below = path.partition("/")
    return below.rpartition("/")[2] in CACHES[CacheName(cache)].empty_names


def entry_of(cache: CacheName, relative: str) -> str:
    """The whole entry that a file belongs to, as a path below the cache's folder.

    Two files of one entry are only ever removed together. A file that lies where entries are folders is an entry
    of its own, grouped with the files that share its name up to the first dot (`cab.cpp` with `cab.so`).
    """
    parts = relative.split("/")
    depth = _depth(CACHES[cache], parts[0])
    if len(parts) > depth:
        return "/".join(parts[:depth])
    stem = parts[-1].split(".", 1)[0] or parts[-1]
    return "/".join([*parts[:-1], stem])


def _depth(facts: CacheFacts, first: str) -> int:
    depths = (depth for pattern, depth in facts.entry_depth.items() if re.fullmatch(pattern, first))
    return next(depths, facts.default_depth)
