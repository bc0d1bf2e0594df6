"""Which of the things that rayprep put before a server it may have died of, decided from its log. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import Record
from rayprep.model.caches import CacheName
from rayprep.sglang.death import Death
from rayprep.sglang.moe_config_lines import MoeConfigs

MOST = 2
"""Things that are tried one after another: each try is another start of a server."""


class ServerDied(StageError):
    """A server of ours ended by itself."""

    def __init__(
        self,
        error_type: ErrorType,
        message: str,
        *,
        death: Death | None,
        moe_configs: MoeConfigs,
        started_at: float,
        signal: int | None = None,
        hint: str = "",
        log_tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(error_type, message, hint=hint, log_tail=log_tail)
        self.death, self.moe_configs = death, moe_configs
        self.signal, self.started_at = signal, started_at
        """Seconds since the epoch."""


class Blame(Record):
    """A thing of ours that a server may have died of."""

    cache: CacheName | None
    """None where any of those with compiled code may be it."""
    paths: tuple[str, ...] = ()
    """Below the profiles root, each a file or what is in its name; none where any entry of the cache may be it."""
    kernel: str = ""
    """Name of a file that the blamed entries of the cache have; empty where all are."""

    @property
    def caches(self) -> tuple[CacheName, ...]:
        return (self.cache,) if self.cache else _COMPILED

    def __str__(self) -> str:
        if len(self.paths) == 1:
            return self.paths[0]
        if self.cache is None:
            return "something in the caches"
        return f"{self.kernel} in {self.cache}" if self.kernel else f"what was in {self.cache}"


_COMPILED = tuple(cache for cache in CacheName if cache is not CacheName.MOE_CONFIGS)


_OTHERS_FAULT = frozenset(
    {
        *(ErrorType.OOM_DURING_WARMUP, ErrorType.INSUFFICIENT_DISK, ErrorType.PERMISSIONS_UNEXPECTED),
        *(ErrorType.PORT_ALL_BUSY, ErrorType.NODE_LOST, ErrorType.STAGE_TIMEOUT),
    }
)
"""No cache's, whatever the log names."""
_LIBRARIES: tuple[tuple[CacheName, re.Pattern[str]], ...] = (
    (CacheName.TORCHINDUCTOR, re.compile(r"/torch/_inductor/")),
    (CacheName.TRITON, re.compile(r"/triton/(?:compiler|runtime|backends)/")),
    (CacheName.FLASHINFER, re.compile(r"/flashinfer/")),
    (CacheName.SGLANG_JIT, re.compile(r"/sglang/(?:jit_kernel|kernels/jit)/")),
    (CacheName.DEEP_GEMM, re.compile(r"/deep_gemm/")),
)
"""By the files of the code that loads what is in a cache."""
_ACCIDENT = re.compile(
    r"\b(?:Dist\w*Error|ModuleNotFoundError|BrokenPipeError|ConnectionResetError)\b|\bNCCL\b|watchdog timeout"
    r"|Connection (?:closed|reset) by"
)
"""Exceptions of a server that has lost another process, or lacks a package: nothing in a cache does that."""
_UNKNOWN_REQUEST = re.compile(r"^(?:ValueError|TypeError|NotImplementedError)\b")
_REFUSED = {
    CacheName.FLASHINFER: _UNKNOWN_REQUEST,
    CacheName.DEEP_GEMM: _UNKNOWN_REQUEST,
    CacheName.TORCHINDUCTOR: re.compile(r"LoweringException"),
}
"""What a library raises that is asked for something which it does not have; what it loads from a cache is not asked."""
_CRASHED = re.compile(r"^Fatal Python error: (?!init)|\bexit code: -(?:4|6|7|8|11)\b")
"""Machine code was at fault, of a process of the server: SIGILL, SIGABRT, SIGBUS, SIGFPE or SIGSEGV."""
CRASHES = frozenset({4, 6, 7, 8, 11})
_TORCH_COMPILE = re.compile(r"/torch/_(?:dynamo|inductor)/")
_MOE = re.compile(r"/fused_moe_triton|/moe_runner/triton|/fused_moe[^/]*\.py$")
_MOE_KERNELS = "fused_moe"
_RESOURCES = re.compile(r"OutOfResources|out of resource", re.I)
"""What a kernel asks for is decided by its config; no damaged entry asks for more."""


def blames(
    error_type: ErrorType | None,
    death: Death | None,
    configs: Sequence[str],
    roots: Iterable[str],
    signal: int | None = None,
) -> tuple[Blame, ...]:
    """What to try without, the likeliest first, at most MOST of them. Empty where it was none of ours.

    Args:
        signal: that ended the server itself.
        configs: the MoE configs of ours that the server's log says it uses, below the profiles root.
        roots: the profiles root, by each name that a log may have for it.
    """
    if error_type in _OTHERS_FAULT or (death and _ACCIDENT.search(death.exception)):
        return ()
    crashed = signal in CRASHES or (death is not None and _CRASHED.search(death.exception) is not None)
    if death is None:
        return (Blame(cache=None),) if crashed else ()
    found = list(_named(death, tuple(roots)))
    if error_type is not ErrorType.TOOLCHAIN_MISMATCH:
        found += _by_what_raised(death, configs)
    compiling = any(_TORCH_COMPILE.search(path) for path in death.files)
    if death.while_capturing and configs and not compiling and error_type is not ErrorType.TOOLCHAIN_MISMATCH:
        found.append(Blame(cache=CacheName.MOE_CONFIGS, paths=tuple(configs)))
    if crashed:  # of code that says nothing of where it came from
        found.append(Blame(cache=None))
    return tuple(dict.fromkeys(found))[:MOST]


def _named(death: Death, roots: Sequence[str]) -> Iterator[Blame]:
    """What a path in the exception's message leads to, or a file of generated code that it was raised in."""
    caches = {cache.value: cache for cache in CacheName}
    for path in (*death.mentions, *reversed(death.files)):
        root = next((root for root in roots if path.startswith(f"{root}/")), None)
        below = path[len(root) + 1 :] if root else ""
        cache = caches.get(below.partition("/")[0])
        if cache and cache is not CacheName.MOE_CONFIGS:
            yield Blame(cache=cache, paths=(below,))


def _by_what_raised(death: Death, configs: Sequence[str]) -> Iterator[Blame]:
    """By the library whose code is innermost, and by the kernel."""
    loader = next((cache for path in reversed(death.files) for cache, code in _LIBRARIES if code.search(path)), None)
    of_moe = death.kernel.startswith(_MOE_KERNELS) or any(_MOE.search(path) for path in death.files)
    config = [Blame(cache=CacheName.MOE_CONFIGS, paths=tuple(configs))] if configs and of_moe else []
    if _RESOURCES.search(death.exception):
        yield from config
        return
    refused = _REFUSED.get(loader) if loader else None
    if loader and not (refused and refused.search(death.exception)):
        yield Blame(cache=loader, kernel=death.kernel if loader is CacheName.TRITON else "")
    yield from config
