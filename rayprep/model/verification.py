"""The proof that nothing is left to compile: a server is started, and whatever is new afterwards was missing before."""

from collections.abc import Iterable, Mapping
from typing import Literal

from rayprep.model.base import Record, Utc
from rayprep.model.caches import CacheName, FileKind, classify, entry_of
from rayprep.model.cleanup import Cleanup
from rayprep.model.errors import ErrorType
from rayprep.model.located import Located
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName

NAMED = 50
"""How many new files, and how many lines of the log, a result names; it counts all of them."""


class Verification(Record):
    """A proof that succeeded, kept in the completion of `serve`."""

    verified_at: Utc
    command: tuple[str, ...]
    ready_s: float


class NewFile(Record):
    """A file that the server had to make, or that it ought to have found."""

    cache: str
    """A cache's name, or `home` for what was left in the server's own HOME."""
    path: str
    """Below the profiles root, or below HOME."""
    kernel: str
    stage: StageName | None
    """Which stage should have built it; null for a file in HOME, which no stage looks after."""


class VerifyResult(Record):
    """How the proof went. `skipped` says in `reason` why there was none."""

    ran: bool
    status: Literal["ok", "error", "skipped"]
    reason: str | None = None
    new_files: int = 0
    """Artifacts in the caches, and any file in HOME, that were not there before."""
    jit_events: int = 0
    """Lines of the server's log that speak of a compilation."""
    ready_s: float | None = None
    duration_s: float = 0.0
    command: tuple[str, ...] = ()
    port: int | None = None
    warmup_pid: int | None = None
    new: tuple[NewFile, ...] = ()
    missing: tuple[NewFile, ...] = ()
    """What a completion lists and what was not there before the server started."""
    events: tuple[str, ...] = ()
    log_file: Located | None = None
    cleanup: Cleanup | None = None
    error_type: ErrorType | None = None
    message: str | None = None


def new_file(path: str) -> NewFile:
    """Names a file below the profiles root: whose it is, and which kernel or module."""
    cache = CacheName(path.partition("/")[0])
    entry = entry_of(cache, path.partition("/")[2])
    # The last part that is no hash says most: a module's folder, a kernel's, or for Triton the kernel's file.
    kernel = path.rpartition("/")[2].split(".", 1)[0] if cache is CacheName.TRITON else entry.rpartition("/")[2]
    stage = StageName.SERVE if cache in STAGES[StageName.SERVE].caches else ANSWERS_FOR[cache]
    return NewFile(cache=cache.value, path=path, kernel=kernel, stage=stage)


def home_file(path: str) -> NewFile:
    return NewFile(cache="home", path=path, kernel=path.rpartition("/")[2], stage=None)


def new_files(before: Mapping[str, int], after: Mapping[str, int], home: Iterable[str]) -> tuple[NewFile, ...]:
    """What a server made.

    Args:
        before, after: the artifacts of all caches, path below the profiles root -> bytes.
        home: all files below the server's HOME, which was empty before. Locks and logs do not count.
    """
    changed = [new_file(path) for path in sorted(after) if before.get(path) != after[path]]
    left = (path for path in sorted(home) if classify(CacheName.OTHERS, tuple(path.split("/"))) is FileKind.ARTIFACT)
    return (*changed, *(home_file(path) for path in left))


def in_words(files: Iterable[NewFile]) -> str:
    """`flashinfer: norm (should have been built by flashinfer)`, the first of each cache."""
    first: dict[str, NewFile] = {}
    for file in files:
        first.setdefault(file.cache, file)
    return "; ".join(
        f"{file.cache}: {file.kernel}" + (f", which {file.stage} should have built" if file.stage else "")
        for file in first.values()
    )
