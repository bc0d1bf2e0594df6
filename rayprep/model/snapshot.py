"""What lies in each cache now, and whether it can be used: the seed contract's `profile_cache.start`."""

from rayprep.base.records import Record, Utc
from rayprep.model.signature import Difference, Signature


class PartialInfo(Record):
    """Whose unfinished work stands in the cache: a marker's content."""

    owner_pid: int | None = None
    started_at: Utc | None = None
    model_slug: str
    stage: str

    @property
    def owner(self) -> str:
        """In words."""
        if self.owner_pid is None:
            return "whose marker is damaged"
        return f"pid {self.owner_pid} since {self.started_at}"


class NewestFile(Record):
    path: str
    """Below the cache's folder; bytes that are not UTF-8 are written as `\\xNN`."""
    size_bytes: int
    mtime_iso: Utc


class SlugState(Record):
    """One model's standing in one cache."""

    model_slug: str
    tp_size: int
    valid: bool
    reason: str | None = None
    model_source: str


class CacheSnapshot(Record):
    """One cache. Sizes and counts are of artifacts: no locks, logs, scratch or ninja's own files."""

    exists: bool
    partial: bool = False
    partial_info: PartialInfo | None = None
    valid: bool
    reason: str | None = None
    """Why it is not valid, or why it is valid with nothing in it (`not_needed`). Null for `valid_signature`."""
    detail: str | None = None
    differences: tuple[Difference, ...] = ()
    path: str
    """Relative to the home folder where it lies below it, else absolute."""
    size_bytes: int = 0
    file_count: int = 0
    latest_mtime_iso: Utc | None = None
    newest_age_s: float | None = None
    newest_files: tuple[NewestFile, ...] = ()
    warnings: tuple[str, ...] = ()
    slugs: tuple[SlugState, ...] = ()
    signature: Signature
    """Of the completion that the verdict is about; of this host where there is none."""


class ProfileSnapshot(Record):
    """All caches that a stage answers for, and whether any of them is unfinished."""

    schema_version: str = "1"
    partial: bool
    profiles_root: str
    """Absolute, under the name that it has on the host."""
    taken_at: Utc
    triton: CacheSnapshot
    torchinductor: CacheSnapshot
    flashinfer: CacheSnapshot
    deep_gemm: CacheSnapshot
    moe_configs: CacheSnapshot
    sglang_jit: CacheSnapshot
    others: CacheSnapshot
