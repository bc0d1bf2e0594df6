"""A profiles root to be reset, filled as the libraries fill it, and somebody who holds its locks."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rayprep.base.records import utc_from_timestamp
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.markers import Marker, write_marker
from rayprep.store.reset.filters import Filters
from rayprep.store.reset.remove import reset
from rayprep.store.reset.report import ResetReport
from tests.model.samples import DIGEST, completion, identity

DAY = 86400.0
DEEP_GEMM, MOE, FLASHINFER, INDUCTOR, SERVE = StageName
MODULES = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops"


@dataclass(frozen=True)
class Caches:
    """A profiles root that a test fills as the libraries would."""

    layout: Layout

    def file(self, path: str, *, days: float = 0.0, text: str = "12345") -> str:
        whole = self.layout.profiles / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8")
        os.utime(whole, (time.time() - days * DAY,) * 2)
        return path

    def kernel(self, name: str, *, days: float = 0.0) -> tuple[str, ...]:
        return tuple(self.file(f"deep_gemm/cache/{name}/kernel.{end}", days=days) for end in ("cu", "cubin"))

    def module(self, name: str) -> tuple[str, ...]:
        self.file(f"{MODULES}/{name}/build.ninja")
        return (self.file(f"{MODULES}/{name}/{name}.so"),)

    def complete(self, stage: StageName, slug: str, *files: str, **changes: object) -> Path:
        whose = identity(model_slug=slug)
        changes |= {"identity": whose, "artifacts": dict.fromkeys(files, (5, DIGEST))}
        return write_completion(self.layout, completion(stage, **changes))

    def skip(self, stage: StageName, slug: str) -> Path:
        return self.complete(stage, slug, outcome="skipped", reason="no_gpu")

    def mark(self, slug: str, stage: StageName, *, days: float = 0.0) -> Path:
        since = utc_from_timestamp(time.time() - days * DAY)
        write_marker(self.layout, slug, stage, Marker(owner_pid=1, started_at=since, run_id="dead", host="h"))
        return self.layout.marker(slug, stage)

    def there(self, *below: str) -> set[str]:
        top = self.layout.profiles
        files = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}
        return {file for file in files if file.split("/")[0] in (below or tuple(CacheName))}

    def reset(self, said: list[str] | None = None, **filters: object) -> ResetReport:
        said = [] if said is None else said
        return reset(self.layout, Filters.model_validate(filters), "r", said.append, lambda _: True)


def paths(report: ResetReport) -> set[str]:
    return {entry.path for entry in report.removed}


HOLD = """
import sys
from pathlib import Path
from rayprep.host.locks import acquire
with acquire([Path(sys.argv[1])], "their-run", 0.0, lambda *_: None, lambda: False):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(lock: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder
