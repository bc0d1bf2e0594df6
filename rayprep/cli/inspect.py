"""`rayprep inspect`, `snapshot` and `env`: what lies there, without changing anything."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rayprep.base.errors import BadRequest
from rayprep.cli import output
from rayprep.host.environment import server_cache_env
from rayprep.host.gpu import read_gpus, visible_gpus
from rayprep.host.layout import choose_roots
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.caches import CacheName
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot
from rayprep.model.spec import DeviceChoice
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName
from rayprep.report.screen import Grid, Screen
from rayprep.store.snapshot import Wanted, take_inventory, take_snapshot

_NEWEST_SHOWN = 3
_WIDTH_OF_A_FILE = 160
_LONGEST_PART = 28


@dataclass(frozen=True)
class Question:
    """Which caches, for whom; null where the user did not say."""

    model: str | None = None
    tp: int | None = None
    device: str | None = None
    profiles_root: str | None = None
    deep: bool = False


def run(question: Question, stages: tuple[StageName, ...], *, json_output: bool) -> None:
    """Prints the snapshot; with `stages`, only of the caches that they answer for."""
    snapshot = look(question)
    shown = [cache for cache in ANSWERS_FOR if not stages or any(cache in STAGES[stage].named for stage in stages)]
    if json_output:
        left_out = {cache.value for cache in ANSWERS_FOR if cache not in shown}
        output.json_text(snapshot.model_dump_json(indent=2, exclude=left_out))
        return
    _print_table(snapshot, shown)


def look(question: Question) -> ProfileSnapshot:
    """Takes the snapshot. Raises BadRequest and HostUnfit."""
    environ = dict(os.environ)
    layout = choose_roots(environ, question.profiles_root)
    try:
        choice = DeviceChoice(question.device or "auto")
    except ValueError:
        raise BadRequest(f"--device {question.device!r}", hint="use auto, cuda or cpu") from None
    gpus = visible_gpus(read_gpus(), environ)
    tp = question.tp or 1
    signature = read_signature(layout, environ, choose_device(choice, gpus, tp), gpus)
    wanted = None
    if question.model is not None:
        from rayprep.host.model_files import find_model

        model = find_model(question.model, environ)
        wanted = Wanted(model.slug, model.digest, tp)
    inventory = take_inventory(layout, wanted.slug if wanted else None, tp if wanted else None)
    return take_snapshot(layout, inventory, signature, wanted, question.deep)


def _print_table(snapshot: ProfileSnapshot, caches: list[CacheName]) -> None:
    screen = Screen(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    grid = Grid(title=snapshot.profiles_root)
    for heading in ("cache", "valid", "files", "size", "newest", "models", "why"):
        grid.column(heading, justify="right" if heading in ("files", "size", "newest") else "left")
    for name in caches:
        grid.row(name.value, *_cells(getattr(snapshot, name.value)))
    screen.grid(grid)
    for name in caches:
        cache: CacheSnapshot = getattr(snapshot, name.value)
        for file in cache.newest_files[:_NEWEST_SHOWN]:
            path = _shortened(file.path)
            screen.cut_line(f"{name.value}: {file.mtime_iso} {_size(file.size_bytes):>9} {path}")
        for warning in cache.warnings:
            screen.line(f"{name.value}: warning: {warning}", "yellow")


def _shortened(path: str) -> str:
    """Long hashes say nothing to people; the JSON has the whole path."""
    return "/".join(part if len(part) <= _LONGEST_PART else f"{part[:12]}...{part[-8:]}" for part in path.split("/"))


def _cells(cache: CacheSnapshot) -> list[str]:
    slugs = sorted({f"{each.model_slug}/tp{each.tp_size}{'' if each.valid else '!'}" for each in cache.slugs})
    why = ": ".join(part for part in (cache.reason, cache.detail) if part)
    if cache.partial_info:
        owner = cache.partial_info
        why += f" ({owner.model_slug}, {owner.owner})"
    state = "yes" if cache.valid else "partial" if cache.partial else "no"
    return [state, str(cache.file_count), _size(cache.size_bytes), _ago(cache.newest_age_s), " ".join(slugs), why]


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def snapshot(question: Question, manifest: Path | None, *, if_missing: bool) -> None:
    """Prints the snapshot, or merges it into `manifest` without touching its other fields.

    With `if_missing` one that the manifest has stays. Raises BadRequest where the manifest cannot be read.
    """
    if manifest is None:
        output.document(look(question))
        return
    from rayprep.host.manifest_file import read_text, update_manifest
    from rayprep.model.container_manifest import has_snapshot, merge_snapshot

    def stays(text: str) -> bool:
        return if_missing and has_snapshot(text)

    if stays(read_text(manifest)):  # which spares the look, and is asked again under the lock
        output.line(f"profile_cache.start is in {manifest} already")
        return
    taken = look(question)
    update_manifest(manifest, lambda text: text if stays(text) else merge_snapshot(text, str(manifest), taken))
    output.line(f"profile_cache.start written to {manifest}")


def env(profiles_root: str | None, *, env_file: bool) -> None:
    """Prints `export NAME=value` lines for eval, or `NAME=value` lines for a container's env file."""
    from rayprep.stages.moe_tune.files import warn_of_hidden

    layout = choose_roots(dict(os.environ), profiles_root)
    if warning := warn_of_hidden(layout):
        output.warn(f"{warning} (run `rayprep ensure`)")
    for name, value in server_cache_env(layout).items():
        output.for_programs(f"{name}={value}" if env_file else f"export {name}={shlex.quote(value)}")
