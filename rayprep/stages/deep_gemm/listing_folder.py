"""The scratch folder in which DeepGEMM lists its kernels: where its cache seems to lie, and the stand-in compiler.

view -> listing     DG_JIT_CACHE_DIR; turned to the real cache once the listed kernels are compiled
listing/            the cache of the listing, with stubs in place of cubins
nvcc                DG_JIT_NVCC_COMPILER: runs `nvcc_recorder`
refuse              once it exists, the stand-in compiles nothing
failed              what the real compiler said when it failed
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rayprep.stages.deep_gemm import nvcc_recorder


@dataclass(frozen=True)
class ListingFolder:
    """One such folder. Its path must have no white space: DeepGEMM calls the shell without quotes."""

    path: Path

    @property
    def view(self) -> Path:
        return self.path / "view"

    @property
    def listing(self) -> Path:
        return self.path / "listing"

    @property
    def compiler(self) -> Path:
        return self.path / "nvcc"

    def prepare(self, nvcc: str) -> dict[str, str]:
        """Fills the empty folder. Returns the variables that lead DeepGEMM to it."""
        self.listing.mkdir()
        self.view.symlink_to(self.listing)
        # -I and -S: it is started for every kernel, and needs neither site-packages nor the user's settings.
        command = [sys.executable, "-IS", nvcc_recorder.__file__, str(self.path), nvcc]
        self.compiler.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
        self.compiler.chmod(0o755)
        return {"DG_JIT_CACHE_DIR": str(self.view), "DG_JIT_NVCC_COMPILER": str(self.compiler)}

    def turn_to(self, cache: Path) -> None:
        """From now on DeepGEMM looks into the real cache, and whatever it asks to compile is refused."""
        (self.path / "refuse").touch()
        aside = self.path / "view.new"
        aside.symlink_to(cache)
        aside.replace(self.view)

    def failure(self) -> str | None:
        """What the real compiler said when it failed at a small kernel; None where it did not fail."""
        try:
            return (self.path / "failed").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
