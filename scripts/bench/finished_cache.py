"""A finished cache to measure with: files, and a completion that lists them."""

import os
from dataclasses import dataclass
from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion, Identity, cache_key
from rayprep.model.signature import Signature
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.scan import hash_files, scan_cache

MIB = 1 << 20
CACHE = CacheName.TRITON
_ANYTHING = Signature(
    device_name="cpu", cpu_arch="any", cpu_isa="any", libc="any", python="any", install_prefix="/", profiles_root="/"
)
_NOBODY = Identity(model_slug="bench", config_digest="none", tp=1)


@dataclass(frozen=True)
class FinishedCache:
    name: str
    layout: Layout
    completion: Completion
    sums: Path
    """For `sha256sum -c` in the profiles root."""


def make_cache(folder: Path, name: str, files: int, size: int, per_entry: int) -> FinishedCache:
    """`files` files of `size` bytes that no compressor makes smaller, in entries of `per_entry`."""
    layout = Layout(folder / name / "profiles", folder / name / "telemetry")
    noise = os.urandom(8 * MIB)
    for number in range(files):
        entry = layout.cache(CACHE) / f"K{number // per_entry:050d}"
        entry.mkdir(parents=True, exist_ok=True)
        start = number * 997 % MIB
        with (entry / f"kernel_{number % per_entry}.cubin").open("wb") as file:
            for done in range(0, size, MIB):
                file.write(noise[start : start + min(size - done, MIB)])
    sizes = scan_cache(layout.profiles, CACHE).files
    hashes = hash_files(layout.profiles, sizes)
    completion = _completion({path: (sizes[path], hashes[path]) for path in sorted(sizes)})
    write_completion(layout, completion)
    sums = folder / name / "sums"
    sums.write_text("".join(f"{hashes[path].partition(':')[2]}  {path}\n" for path in sizes), encoding="utf-8")
    return FinishedCache(name, layout, completion, sums)


def _completion(artifacts: dict[str, tuple[int, str]]) -> Completion:
    return Completion(
        stage=StageName.INDUCTOR,
        key=cache_key(StageName.INDUCTOR, _NOBODY, _ANYTHING),
        identity=_NOBODY,
        model_source="none",
        signature=_ANYTHING,
        artifacts=artifacts,
        started_at="2026-01-01T00:00:00Z",
        finished_at="2026-01-01T00:00:00Z",
        duration_s=0,
        run_id="bench",
        rayprep_version="bench",
    )
