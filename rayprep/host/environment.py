"""The environment of the processes that we start: what was inherited, less what they must not see, plus ours."""

import os
from collections.abc import Mapping
from pathlib import Path

from rayprep.base.secrets import may_hold_secret, redacted_settings
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName

STORE_MARK = "RAYPREP_STORE"
"""Carried by every process that works in a store, so that what a dead owner left can be found and ended."""

RUN_MARK = "RAYPREP_RUN"
"""Beside it, the invocation that started the process."""

CHILD_MARK = "RAYPREP_CHILD"
"""Beside both, the one guarded child that the process belongs to."""

_COMPILERS = (
    *("TORCHINDUCTOR_", "TORCH_COMPILE_", "TORCHDYNAMO_", "TRITON_", "SGLANG_TORCH_COMPILE_MODE"),
    *("DG_JIT_", "DJ_JIT_", "SGL_DG_", "SGLANG_DG_", "SGLANG_ENABLE_JIT_DEEPGEMM"),
    *("FLASHINFER_EXTRA_", "NVCC_APPEND_", "NVCC_PREPEND_"),
)
_NOT_IN_THE_CODE = ("_DIR", "_THREADS", "_NVCC_COMPILER", "_PRINT_COMPILER_COMMAND")
"""Endings of those of them that change no kernel."""
_COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_EVERY_START_ALIKE = {
    "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0",
    "TORCHINDUCTOR_DYNAMIC_SCALE_RBLOCK": "0",
    _COMPILE_THREADS: "1",
}
"""So that a server takes the kernels that TorchInductor has tuned, and does not tune them again, which leaves others.

That a config was tuned is a mark on it, which is lost when the config is pickled or copied: in a launcher that is kept
beside a graph, on the way from a compile worker, and where a reduction that takes many registers is tried with half of
its block as well. CUDA graphs launch a kernel in the same time either way, and the tuning tries half blocks by itself.
Sources: torch 2.11, torch/_inductor/runtime/triton_heuristics.py (`recheck_autotune_cache`, `_dynamic_scale_rblock`,
`run`); triton 3.6, triton/runtime/autotuner.py (`Config.__setstate__`).
"""
_MAX_COMPILE_THREADS = 32
"""Of TorchInductor's own choosing (torch/_inductor/config.py, `decide_compile_threads`)."""

_DROPPED = frozenset(
    {
        # Ray sets it to 1 in its workers, which would make every compile and every warm-up crawl.
        "OMP_NUM_THREADS",
        # A debugger's or profiler's settings for us are not meant for the compilers.
        "PYTHONSTARTUP",
        # Ours where there are configs. Else a server would read another root's, or die of a folder without any.
        "SGLANG_MOE_CONFIG_DIR",
        # They would lead libraries out of the HOME that the child is given.
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
    }
)


def child_env(environ: Mapping[str, str], layout: Layout, home: Path, invocation: str) -> dict[str, str]:
    """Every cache variable points under the profiles root; HOME is `home`, so that nothing lands in the user's.

    The Hugging Face folders are resolved before HOME changes, since their defaults lie below it.
    """
    return {
        **passed_on(environ),
        **hub_folders(environ),
        **server_cache_env(layout),
        "HOME": str(home),
        # As NVML numbers GPUs: on a host with unlike ones, CUDA would put its fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        STORE_MARK: store_mark(layout),
        RUN_MARK: invocation,
        # sglang and Ray rename their processes with setproctitle, which overwrites the marks unless told not to.
        "SPT_NOENV": "1",
    }


def server_cache_env(layout: Layout) -> dict[str, str]:
    """Every variable that leads a server to its caches, and what makes it use them the same way at each start.

    A server that is sent to a folder without configs/ dies while it starts, and where no config lies in it the server
    has none at all; without the variable it uses its own.
    """
    values = {**layout.cache_env(), **_EVERY_START_ALIKE}
    if not any((layout.cache(CacheName.MOE_CONFIGS) / "configs").glob("triton_*/*.json")):
        del values["SGLANG_MOE_CONFIG_DIR"]
    return values


def on_every_core() -> dict[str, str]:
    """What differs for a child that has many of TorchInductor's kernels to compile."""
    return {_COMPILE_THREADS: str(min(_MAX_COMPILE_THREADS, len(os.sched_getaffinity(0))))}


def compiler_settings(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What of a child's environment changes which kernels are compiled: the compilers' switches, less their folders.

    Whatever may hold a secret is left out: what comes of this stands in files that others read.
    """
    return redacted_settings(
        sorted(
            f"{name}={value}"
            for name, value in {**environ, **_EVERY_START_ALIKE}.items()
            if name.startswith(_COMPILERS) and not name.endswith(_NOT_IN_THE_CODE)
        )
    )


def store_mark(layout: Layout) -> str:
    """One value for one store, however its path is spelled."""
    return os.path.realpath(layout.profiles)


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a child may inherit."""
    return {name: value for name, value in environ.items() if is_passed_on(name, value)}


def for_ray(environ: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that starts or joins Ray: all but secrets, with Ray's own, and `values`.

    Its workers read in it what the user has set, and what they start gets less (`child_env`).
    """
    kept = {
        name: value for name, value in environ.items() if name.startswith("RAY_") or not may_hold_secret(name, value)
    }
    return {**kept, **values}


def is_passed_on(name: str, value: str = "") -> bool:
    """Whether a child may inherit the variable. Whatever may hold a secret is kept back, and Ray's own."""
    return not (name.startswith("RAY_") or name in _DROPPED or may_hold_secret(name, value))


def hub_folders(environ: Mapping[str, str]) -> dict[str, str]:
    """HF_HOME and HF_HUB_CACHE as huggingface_hub resolves them, `~` included: it means another folder in a child.

    Source: huggingface_hub/constants.py.
    """
    cache_home = environ.get("XDG_CACHE_HOME") or "~/.cache"
    hf_home = environ.get("HF_HOME") or f"{cache_home}/huggingface"
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or f"{hf_home}/hub"
    return {"HF_HOME": _expanded(hf_home), "HF_HUB_CACHE": _expanded(hub)}


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - Path raises where there is no home
