"""The proof that nothing is left to compile: a server is started, and whatever is new afterwards was missing before."""

import re
from collections.abc import Iterable
from typing import Literal

from rayprep.base.errors import ErrorType
from rayprep.base.records import FINITE, Located, Record, Utc
from rayprep.model.caches import CacheName, FileKind, classify, entry_of
from rayprep.model.process_end import Cleanup
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName

VERIFY = "verify"
"""The proof's name in events, beside the stages'."""
STANDS = "verified"
"""Why there is no proof where an earlier one still holds."""
NAMED = 50
"""How many new files, and how many lines of the log, a result names; it counts all of them."""


class Verification(Record):
    """A proof that succeeded, kept in the completion of `serve`."""

    model_config = FINITE

    verified_at: Utc
    command: tuple[str, ...]
    ready_s: float
    slices: int = 1
    """How many servers ran at once."""


class NewFile(Record):
    """A file that the server had to make, or that it ought to have found."""

    cache: str
    """A cache's name, or `home` for what was left in the server's own HOME."""
    path: str
    """Below the profiles root, or below HOME."""
    kernel: str
    stage: StageName | None
    """Which stage should have built it; null for a file in HOME, which no stage looks after."""


class SliceProof(Record):
    """One of the servers that a proof ran at once, each on GPUs of its own. What it made is told for all together."""

    index: int
    gpus: tuple[int, ...]
    """As NVML numbers them."""
    status: Literal["ok", "error"]
    """`error` for one that failed, that says in its log that it compiled, or that left something in its HOME."""
    ready_s: float | None = None
    jit_events: int = 0
    port: int | None = None
    warmup_pid: int | None = None
    log_file: Located | None = None
    error_type: ErrorType | None = None
    message: str | None = None

    def __str__(self) -> str:
        return f"slice {self.index} (GPU {', '.join(map(str, self.gpus))})"


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
    unread: tuple[str, ...] = ()
    """Caches that hold what is listed for this request, and of which the server read nothing."""
    slices: tuple[SliceProof, ...] = ()
    """Each server, where several ran at once; `port`, `warmup_pid` and `log_file` are then the first one's, `ready_s`
    is the slowest one's, and the rest is said of all of them."""
    warnings: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    log_file: Located | None = None
    cleanup: Cleanup | None = None
    error_type: ErrorType | None = None
    message: str | None = None

    @property
    def stands(self) -> bool:
        """It is a proof, or there was none since an earlier one still holds."""
        return self.status == "ok" or self.reason == STANDS


def new_file(path: str) -> NewFile:
    """Names a file below the profiles root: whose it is, and which kernel or module."""
    cache = CacheName(path.partition("/")[0])
    entry = entry_of(cache, path.partition("/")[2])
    # The last part that is no hash says most: a module's folder, a kernel's, or for Triton the kernel's file.
    named = re.sub(r"/build-[^/]*$", "", entry) if cache is CacheName.SGLANG_JIT else entry
    kernel = path.rpartition("/")[2].split(".", 1)[0] if cache is CacheName.TRITON else named.rpartition("/")[2]
    stage = StageName.SERVE if cache in STAGES[StageName.SERVE].caches else ANSWERS_FOR[cache]
    return NewFile(cache=cache.value, path=path, kernel=kernel, stage=stage)


def home_file(path: str) -> NewFile:
    return NewFile(cache="home", path=path, kernel=path.rpartition("/")[2], stage=None)


def new_files(made: Iterable[str], home: Iterable[str]) -> tuple[NewFile, ...]:
    """What a server made.

    Args:
        made: the artifacts that are new or of new content, paths below the profiles root.
        home: all files below the server's HOME, which was empty before. Locks and logs do not count.
    """
    changed = [new_file(path) for path in sorted(made)]
    left = (path for path in sorted(home) if classify(CacheName.OTHERS, tuple(path.split("/"))) is FileKind.ARTIFACT)
    return (*changed, *(home_file(path) for path in left))


def shortfall(result: VerifyResult) -> str:
    """What keeps a result from being a proof, in one line; empty where nothing does."""
    parts = []
    if result.new:
        parts.append(f"the server made {result.new_files} new files ({in_words(result.new)})")
    if result.missing:
        parts.append(f"{len(result.missing)} files had gone before it started ({in_words(result.missing)})")
    if result.events:
        parts.append(f"its log speaks of {result.jit_events} compilations, first: {result.events[0]}")
    if result.unread:
        caches = " and ".join(result.unread)
        parts.append(f"it read nothing of what is prepared in {caches}: it does not run with `rayprep env`")
    return "; ".join(parts)


def in_words(files: Iterable[NewFile]) -> str:
    """`flashinfer: norm (should have been built by flashinfer)`, the first of each cache."""
    first: dict[str, NewFile] = {}
    for file in files:
        first.setdefault(file.cache, file)
    return "; ".join(
        f"{file.cache}: {file.kernel}" + (f", which {file.stage} should have built" if file.stage else "")
        for file in first.values()
    )


def skipped(reason: str) -> VerifyResult:
    """No proof, and why."""
    return VerifyResult(ran=False, status="skipped", reason=reason)
