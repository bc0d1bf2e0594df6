"""One row of the table: what rayprep names, in which releases it is there, and what rayprep does without it."""

from dataclasses import dataclass, replace

from rayprep.sglang.pins import PINS
from rayprep.sglang.releases import has_deep_jit, since
from scripts.upstream.checks import Check

SGLANG, FLASHINFER, DEEP_GEMM = "sglang", "flashinfer-python", "sgl-deep-gemm"
DEEP_GEMM_LOOP = ("sglang/srt/layers/deep_gemm_wrapper/compile_utils.py",)
"""The file of SGLang's loop over DeepGEMM's kernels, which rows of more than one sort read."""
PACKAGES = (SGLANG, FLASHINFER, DEEP_GEMM)
"""Whose wheels are read. Others that rayprep names variables of (torch, triton, tvm-ffi, ...) are not fetched."""

DEEP_JIT_SINCE = next(release for release, pins in PINS.items() if has_deep_jit(pins[DEEP_GEMM]))
"""The first release of SGLang whose DeepGEMM is 0.2."""


@dataclass(frozen=True)
class Contract:
    """Something that rayprep names."""

    check: Check
    then: str
    """What rayprep does where it does not hold, for people."""
    package: str = SGLANG
    since: str | None = None
    """The first release of SGLang that has it; None for one that rayprep has always known."""
    until: str | None = None
    """The last one that has it."""
    replaced: bool = False
    """Another row stands for it from then on, so that nothing is lost without it."""

    def __str__(self) -> str:
        return str(self.check)

    @property
    def id(self) -> str:
        """A name that no other row has."""
        return f"{self} in {self.package} from {self.since or 'the first'} to {self.until or 'the last'}"

    def is_said_of(self, version: str) -> bool:
        """Tell whether the row says that this release of SGLang has it."""
        return self.has_begun(version) and not self.is_over(version)

    def has_begun(self, version: str) -> bool:
        """Tell whether the release is none of those before the first that has it."""
        return self.since is None or since(version, self.since)

    def is_over(self, version: str) -> bool:
        """Tell whether the release is later than the last that has it."""
        return self.until is not None and not since(self.until, version)


def rows(
    then: str,
    *checks: Check,
    package: str = SGLANG,
    since: str | None = None,
    until: str | None = None,
    replaced: bool = False,
) -> tuple[Contract, ...]:
    """Return a row for each check; all have the rest in common."""
    row = Contract(checks[0], then, package, since, until, replaced)
    return tuple(replace(row, check=check) for check in checks)
