"""The stages, in the order in which they run: their codes, and the caches that each answers for."""

from dataclasses import dataclass
from enum import StrEnum

from rayprep.model.caches import CacheName


class StageName(StrEnum):
    """A stage, by the name that it has in every file, log line and exit code table."""

    DEEP_GEMM = "deep_gemm"
    MOE_TUNE = "moe_tune"
    FLASHINFER = "flashinfer"
    INDUCTOR = "inductor"
    SERVE = "serve"


class StageStatus(StrEnum):
    """How a stage ended."""

    OK = "ok"
    ERROR = "error"
    SKIPPED = "skipped"
    NOOP = "noop"


@dataclass(frozen=True)
class StageFacts:
    """`code` is the stage's exit status when it fails first; `caches` are those it writes to, the first its own."""

    code: int
    caches: tuple[CacheName, ...]
    by_the_way: tuple[CacheName, ...] = ()
    """Of `caches`, those that are not meant where caches are called by the stage's name."""

    @property
    def named(self) -> tuple[CacheName, ...]:
        """What `reset` and `inspect` mean by the stage."""
        return tuple(cache for cache in self.caches if cache not in self.by_the_way)


STAGES: dict[StageName, StageFacts] = {
    StageName.DEEP_GEMM: StageFacts(10, (CacheName.DEEP_GEMM,)),
    # The tuner compiles Triton kernels, too, which is why `--triton` selects this stage.
    StageName.MOE_TUNE: StageFacts(11, (CacheName.MOE_CONFIGS, CacheName.TRITON)),
    StageName.FLASHINFER: StageFacts(12, (CacheName.FLASHINFER,)),
    # On a GPU the kernels of its graphs are Triton's. Wherever `serve` runs it is that which lists them.
    StageName.INDUCTOR: StageFacts(13, (CacheName.TORCHINDUCTOR, CacheName.TRITON), by_the_way=(CacheName.TRITON,)),
    # A server compiles small graphs of its own even where nobody asks it to compile the model.
    StageName.SERVE: StageFacts(
        14, (CacheName.TRITON, CacheName.SGLANG_JIT, CacheName.OTHERS, CacheName.TORCHINDUCTOR)
    ),
}

ANSWERS_FOR: dict[CacheName, StageName] = {
    CacheName.DEEP_GEMM: StageName.DEEP_GEMM,
    CacheName.MOE_CONFIGS: StageName.MOE_TUNE,
    CacheName.TRITON: StageName.SERVE,
    CacheName.FLASHINFER: StageName.FLASHINFER,
    CacheName.TORCHINDUCTOR: StageName.INDUCTOR,
    CacheName.SGLANG_JIT: StageName.SERVE,
    CacheName.OTHERS: StageName.SERVE,
}
"""Which stage's completion says whether a cache is valid: where two write to it, the one that finishes it."""


def exit_code(failed: list[StageName]) -> int:
    """The code of the first failing stage in order, 0 where none failed."""
    return next((facts.code for stage, facts in STAGES.items() if stage in failed), 0)
