"""Variables of the environment that rayprep sets or reads. Those of other packages' wheels are not looked for."""

import re
from collections.abc import Iterable

from rayprep.base.otlp import OtlpEndpoint
from rayprep.model.caches import CACHES
from rayprep.sglang import inventory
from rayprep.sglang.command import server_env
from rayprep.stages.deep_gemm import by_server
from scripts.upstream.checks import Holds, Named
from scripts.upstream.contract import DEEP_GEMM, DEEP_JIT_SINCE, FLASHINFER, Contract, rows

OURS = re.compile(r"\b(?:SGLANG|SGL_DG|FLASHINFER|DG|DJ)_[A-Z0-9_]+")
"""The variables of the wheels that are read."""
UNREAD = {"FLASHINFER_WORKSPACE_DIR": "the contract's name, which rayprep exports beside the one that is read"}
"""Those that no library reads, and why rayprep names them."""
IN_PIECES = ("DG_JIT_NVCC_COMPILER", "DG_JIT_DUMP_", "DG_JIT_DEBUG", "DJ_JIT_", "DJ_JIT_DUMP_", "DJ_JIT_DEBUG")
"""Those that machine code puts together, of which the rows have a piece."""
_SINCE = {"SGLANG_JIT_CACHE_DIR": "0.5.18"}
_SETTINGS = ("sglang/srt/environ.py",)
_IN_DEEP_GEMM = ("deep_gemm/_C.so",)


def _variables(names: Iterable[str]) -> list[Named]:
    return [Named("variable", name) for name in sorted(set(names) - UNREAD.keys())]


def _begins(names: Iterable[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


_CACHES = [variable for facts in CACHES.values() for variable in facts.env]
_SERVER = server_env({})
_ASTRAY = "the cache that it leads to lies elsewhere: the proof names the files that are missing from it"
_SILENT = "the server does not say what it compiles; the proof still finds the files"
_NO_DUMP = "a dump that is asked for fails the listing"

VARIABLES: tuple[Contract, ...] = (
    *(
        row
        for variable in _variables(_begins(_CACHES, "SGLANG_"))
        for row in rows(_ASTRAY, variable, since=_SINCE.get(variable.name))
    ),
    *rows(_ASTRAY, *_variables(_begins(_CACHES, "FLASHINFER_")), package=FLASHINFER),
    # SGLang hands it on; DeepGEMM's machine code has no more than pieces of some names.
    *rows(_ASTRAY, *_variables(_begins(_CACHES, "DG_"))),
    *rows(
        "the caches of SGLang's own modules lie below SGLANG_JIT_CACHE_DIR alone",
        *_variables(["TVM_FFI_CACHE_DIR"]),
        until="0.5.17",
        replaced=True,
    ),
    *rows(
        "modules that are built ahead are for the GPU that is found",
        *_variables(["TVM_FFI_CUDA_ARCH_LIST"]),
        until="0.5.17",
        replaced=True,
    ),
    *rows(_SILENT, *_variables(_begins(_SERVER, "FLASHINFER_")), package=FLASHINFER),
    *rows(
        _SILENT, Holds("DG_JIT_PRINT_COMPILER_COMMAND", _IN_DEEP_GEMM), package=DEEP_GEMM, until="0.5.19", replaced=True
    ),
    *rows(_SILENT, Holds("JIT_PRINT_COMPILER_COMMAND", _IN_DEEP_GEMM), package=DEEP_GEMM),
    *rows("a server that compiles is taken for one that hangs, and ended", *_variables(_begins(_SERVER, "SGLANG_"))),
    *rows(
        "the child that asks SGLang may wait for its peers, and is ended: rayprep's tables stand in",
        *_variables(_begins(inventory.ENVIRONMENT, "SGLANG_")),
    ),
    *rows("products that only a server reaches are compiled as it starts", *_variables(by_server._ENV)),
    *rows(
        "the proof names a module of SGLang's that is missing by its files alone",
        *_variables(["SGLANG_CRASH_ON_JIT_COMPILE"]),
        since="0.5.20",
    ),
    *rows(
        "a compiler of the user's is not the one that kernels are listed for",
        # Pieces of 16 characters: the rest is in the code that puts them together.
        Holds("DG_JIT_NVCC_COMP", _IN_DEEP_GEMM),
        package=DEEP_GEMM,
        until="0.5.19",
        replaced=True,
    ),
    *rows(
        "a compiler of the user's is not the one that kernels are listed for",
        Holds("JIT_NVCC_COMPILER", _IN_DEEP_GEMM),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
    *rows(_NO_DUMP, *(Holds(name, _IN_DEEP_GEMM) for name in ("JIT_DEBUG", "JIT_DUMP_")), package=DEEP_GEMM),
    *rows(
        _NO_DUMP,
        Holds('get_with_prefix<T>("DJ", suffix)', ("deep_gemm/include/deep_jit/utils/env.hpp",)),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
    *rows("DeepGEMM is not told which compiler to take", *_variables(["DG_JIT_USE_NVRTC"])),
    *rows(
        "kernels are listed for nvcc, whatever the user has asked for",
        *_variables(["SGL_DG_USE_NVRTC"]),
        until="0.5.22",
        replaced=True,
    ),
    # Since then each name that begins so is rewritten.
    *rows(
        "kernels are listed for nvcc, whatever the user has asked for",
        Named("beginning", "SGL_", _SETTINGS),
        Named("variable", "SGLANG_DG_USE_NVRTC", _SETTINGS),
    ),
    *rows(
        "the modules are built for the GPUs that are found",
        *_variables(["FLASHINFER_CUDA_ARCH_LIST"]),
        package=FLASHINFER,
    ),
    *rows(
        "the switch is no part of what tells caches apart",
        *(
            Holds(name, ("flashinfer/jit/cpp_ext.py",))
            for name in ("FLASHINFER_EXTRA_CFLAGS", "FLASHINFER_EXTRA_CUDAFLAGS")
        ),
        package=FLASHINFER,
    ),
    *rows("the switch is no part of what tells caches apart", *_variables(["SGLANG_TORCH_COMPILE_MODE"])),
    *rows("the server's traces go by gRPC", *_variables(OtlpEndpoint(protocol="", address="").server_env)),
    *rows("nothing: an example of a name that holds no secret", *_variables(["SGLANG_LOG_DECODE_GRAPH_KEY"])),
)
