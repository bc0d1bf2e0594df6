"""For harnesses: finds a container run, reads what it and rayprep have written, and says what is not warm.

    from rayprep.client import find_manifest, needs_prep, read_manifest

    manifest = read_manifest(find_manifest())
    for stage, why in needs_prep(manifest, "qwen3-30b-a3b", tp=8).items():
        ...  # scripts/cache/populate_caches.sh

Imports the standard library and pydantic only. Fields that a newer rayprep or another program has added are ignored.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from rayprep.base.errors import HostUnfit
from rayprep.base.records import R, first_problem
from rayprep.base.sealed import SealBroken
from rayprep.base.written import parse_result
from rayprep.host.files import read_bytes, read_text
from rayprep.host.layout import choose_roots
from rayprep.model.container_manifest import (
    LONGEST_POINTER,
    POINTER,
    POINTER_NAME,
    POINTER_ON_HOST,
    Manifest,
    Optimization,
    parse_pointer,
)
from rayprep.model.result import PrepResult
from rayprep.model.snapshot import CacheSnapshot
from rayprep.model.stages import ANSWERS_FOR, StageName, StageStatus

__all__ = ["Manifest", "PrepResult", "StageName", "find_manifest", "needs_prep", "read_manifest", "read_result"]


def find_manifest(environ: Mapping[str, str] | None = None) -> Path:
    """The manifest of the container run that was started last, under the name that it has here.

    Args:
        environ: where HOST_TELEMETRY_ROOT or XDG_DATA_HOME is; this process's environment by default.

    Raises:
        HostUnfit: there is no pointer, or nothing where it points to.
    """
    pointer = choose_roots(os.environ if environ is None else environ).telemetry / POINTER_NAME
    try:
        variables = parse_pointer(read_text(pointer, LONGEST_POINTER))
    except (OSError, UnicodeDecodeError) as error:
        raise HostUnfit(f"pointer {pointer} cannot be read: {error}", hint=_START) from None
    named = [Path(variables[name]) for name in (POINTER_ON_HOST, POINTER) if name in variables]
    found = _first_file(*named)
    if found is None:
        raise HostUnfit(f"pointer {pointer} leads to no manifest: {', '.join(map(str, named))}", hint=_START)
    return found


_START = "start the container with scripts/start_observable_container.sh, or set HOST_TELEMETRY_ROOT to where it writes"


def read_manifest(path: Path) -> Manifest:
    """Raises HostUnfit where it cannot be read."""
    return _read(Manifest, path)


def read_result(manifest: Manifest) -> PrepResult | None:
    """What the last `rayprep ensure` in the container has left; None before the first. Raises HostUnfit."""
    found = _first_file(Path(manifest.prep_result.host_path), Path(manifest.prep_result.container_path))
    return _read(PrepResult, found) if found else None


def _first_file(*places: Path) -> Path | None:
    """The first that is a file which this user can see: the other side's folders may be closed to them."""
    for path in places:
        with contextlib.suppress(OSError):
            if path.is_file():
                return path
    return None


def _read(kind: type[R], path: Path) -> R:
    try:
        return parse_result(kind, read_bytes(path))
    except OSError as error:
        raise HostUnfit(f"{path} cannot be read: {error.strerror}") from None
    except SealBroken as error:
        raise HostUnfit(f"{path} is damaged: {error}") from None
    except ValidationError as error:
        raise HostUnfit(f"{path} is damaged: {first_problem(error)}") from None


def needs_prep(manifest: Manifest, model_slug: str | None = None, tp: int = 1) -> dict[StageName, str]:
    """The stages that have something left to prepare, each with why; empty where all is warm.

    Args:
        model_slug: as in the snapshot, such as `qwen3-30b-a3b`; without one any model's caches will do.
        tp: tensor-parallel size, of that model.
    """
    found = {stage: _why(manifest, stage, model_slug, tp) for stage in StageName}
    return {stage: why for stage, why in found.items() if why}


def _why(manifest: Manifest, stage: StageName, slug: str | None, tp: int) -> str | None:
    """The last word counts: of an `ensure`, of a `reset`, or of the snapshot at the container's start."""
    snapshot, last = manifest.profile_cache.start, manifest.optimizations.get(stage)
    taken = snapshot.taken_at if snapshot else ""
    reset = manifest.resets.get(stage, "")
    if last and (slug is None or (slug, tp) == (last.model_slug, last.tp_size)) and _follows(last, taken, reset):
        return (last.error_type or last.reason or last.status) if last.status is StageStatus.ERROR else None
    if snapshot is None:
        return "no_snapshot"
    if reset >= taken:
        return "reset"
    caches: list[CacheSnapshot] = [getattr(snapshot, cache) for cache, owner in ANSWERS_FOR.items() if owner is stage]
    return next((why for cache in caches if (why := _why_not_valid(cache, slug, tp))), None)


def _follows(last: Optimization, taken: str, reset: str) -> bool:
    """Times are whole seconds: a reset in the same one may have come after, so what it took is rather asked for."""
    return last.finished_at >= taken and last.finished_at > reset


def _why_not_valid(cache: CacheSnapshot, slug: str | None, tp: int) -> str | None:
    if slug is None:
        return None if cache.valid else cache.reason or "not_valid"
    states = [state for state in cache.slugs if (state.model_slug, state.tp_size) == (slug, tp)]
    if any(state.valid for state in states):
        return None
    return next((state.reason for state in states if state.reason), "no_completion")
