"""`rayprep inspect`: what lies in each cache, without changing anything."""

import os
import sys
from dataclasses import dataclass

import typer

from rayprep.base.human import ago, size
from rayprep.cli import on_cluster, output
from rayprep.cli.fleet_flags import FleetFlags
from rayprep.cli.options import (
    Address,
    All,
    Cluster,
    Debug,
    Deep,
    DeepGemm,
    Device,
    Exclude,
    FlashInfer,
    Inductor,
    Json,
    Labels,
    Model,
    Nodes,
    ProfilesRoot,
    Serve,
    Tp,
    Triton,
    device_of,
    refuse_without_cluster,
)
from rayprep.cli.stage_names import selection
from rayprep.host.gpu import read_gpus, visible_gpus
from rayprep.host.layout import choose_roots
from rayprep.host.model_files import find_model
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.caches import CacheName
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName
from rayprep.report.screen import Grid, Screen
from rayprep.store.snapshot import Wanted, read_contents, take_snapshot

_NEWEST_SHOWN = 3
_WIDTH_OF_A_FILE = 160
_LONGEST_PART = 28


def command(
    model: Model = None,
    tp: Tp = None,
    deep_gemm: DeepGemm = False,
    triton: Triton = False,
    flashinfer: FlashInfer = False,
    inductor: Inductor = False,
    serve: Serve = False,
    all_caches: All = False,
    device: Device = None,
    profiles_root: ProfilesRoot = None,
    deep: Deep = False,
    cluster: Cluster = False,
    address: Address = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    labels: Labels = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what lies in each cache, and whether this host can use it."""
    if cluster:
        options = {
            "--model": model,
            "--tp": tp,
            "--deep-gemm": deep_gemm,
            "--triton": triton,
            "--flashinfer": flashinfer,
            "--inductor": inductor,
            "--serve": serve,
            "--device": device,
            "--profiles-root": profiles_root,
            "--deep": deep,
        }
        fleet = FleetFlags(address, nodes or [], exclude or [], labels or [])
        raise typer.Exit(on_cluster.run("inspect", options, fleet, json_output=json))
    refuse_without_cluster(address=address, nodes=nodes, exclude=exclude, labels=labels)
    stages = selection(deep_gemm, triton, flashinfer, inductor, serve, all_caches)
    run(Question(model, tp, device, profiles_root, deep), stages, json_output=json)


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
    choice = device_of(question.device)
    gpus = visible_gpus(read_gpus(), environ)
    tp = question.tp or 1
    signature = read_signature(layout, environ, choose_device(choice, gpus, tp), gpus)
    wanted = None
    if question.model is not None:
        model = find_model(question.model, environ)
        wanted = Wanted(model.slug, model.digest, tp)
    contents = read_contents(layout, wanted.slug if wanted else None, tp if wanted else None)
    return take_snapshot(layout, contents, signature, wanted, question.deep)


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
            screen.cut_line(f"{name.value}: {file.mtime_iso} {size(file.size_bytes):>9} {path}")
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
    return [state, str(cache.file_count), size(cache.size_bytes), ago(cache.newest_age_s), " ".join(slugs), why]
