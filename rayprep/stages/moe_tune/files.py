"""The files below `moe_configs/`: the configs that ship with SGLang, ours, and the link to the one in use.

A server that is sent there sees none of the configs in its own package (SGLANG_MOE_CONFIG_DIR), so they are all here.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayprep.host.environment import server_cache_env
from rayprep.host.files import read_bytes
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion
from rayprep.model.result import Artifacts
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.store.entries import plain_folder
from rayprep.store.moe_folder import active_links, digest_of, is_config, keep_aside, kept_copies, shipped_configs


def unseeded(layout: Layout, shipped: Path) -> Iterator[tuple[Path, Path]]:
    """Of the configs in `shipped` those that are not here, or damaged, each with where it belongs.

    Raises:
        OSError: there is a link on the way, or a file cannot be read.
    """
    top = layout.cache(CacheName.MOE_CONFIGS)
    for folder in sorted({source.parent for source in shipped.rglob("*.json")}):
        home = plain_folder(top, f"configs/{folder.relative_to(shipped)}")
        for source in sorted(folder.glob("*.json")):
            if _is_wanting(home / source.name, source):
                yield source, home / source.name


def _is_wanting(path: Path, source: Path) -> bool:
    """What is as long as the shipped one is not read: there are hundreds, and each run looks."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    if stat.S_ISLNK(found.st_mode):
        return not path.exists()
    if not stat.S_ISREG(found.st_mode) or found.st_size == source.stat().st_size:
        return False
    return not is_config(read_bytes(path))


def seed(layout: Layout, shipped: Path) -> int:
    """Copies what is not here yet or is damaged, and leaves every other file: it may be ours. Returns how many.

    Any number may do so at once: a host that finds its config here asks for no lock.

    Raises:
        OSError: a file cannot be copied; no half of it is left under its name.
    """
    copied = 0
    for source, path in unseeded(layout, shipped):
        layout.caches.write(path, read_bytes(source))
        copied += 1
    return copied


def _hidden_by_ours(layout: Layout) -> Path | None:
    """What ships with the installed SGLang, where servers are sent here in its place."""
    return shipped_configs() if "SGLANG_MOE_CONFIG_DIR" in server_cache_env(layout) else None


def seed_for_servers(layout: Layout) -> str | None:
    """Has the servers that are sent here find what the installed SGLang ships. Returns a warning where they will not.

    Its version may be another than the one that tuned, and the one that was copied then.
    """
    try:
        if shipped := _hidden_by_ours(layout):
            seed(layout, shipped)
    except OSError as error:
        return f"servers do not see all MoE configs that SGLang ships: {error.filename}: {error.strerror or error}"
    return None


def warn_of_hidden(layout: Layout) -> str | None:
    """What `seed_for_servers` would have to do, for who may only look."""
    try:
        count = sum(1 for _ in unseeded(layout, shipped)) if (shipped := _hidden_by_ours(layout)) else 0
    except OSError as error:
        return f"which MoE configs a server sees is not known: {error.filename}: {error.strerror or error}"
    where = layout.cache(CacheName.MOE_CONFIGS)
    return f"{count} of the MoE configs that SGLang ships are not in {where}, where servers look" if count else None


def config_text(entries: Mapping[int, KernelConfig]) -> bytes:
    """A config file as SGLang reads it: number of tokens -> config."""
    document = {str(size): config.entry() for size, config in sorted(entries.items())}
    return (json.dumps(document, indent=4) + "\n").encode()


def place_config(layout: Layout, folder: str, name: str, content: bytes | None) -> Path:
    """Puts a config where servers look, or SGLang's own where there is none of ours. A user's that is there is kept
    aside.

    Raises:
        OSError: it cannot be written, or would be written through a link.
    """
    path = plain_folder(layout.cache(CacheName.MOE_CONFIGS), f"configs/{folder}") / name
    if layout.caches.is_file(path) and layout.caches.read(path) != content:
        keep_aside(layout, [str(path.relative_to(layout.profiles))])
    if content is None:
        layout.caches.unlink(path, missing_ok=True)
    else:
        layout.caches.write(path, content)
    return path


def kept_aside(layout: Layout, config: Path) -> tuple[str, ...]:
    """A warning for each file of a user's in whose place `config` is. It stands for as long as the copy is there."""
    copies = kept_copies(layout, config)
    return tuple(f"a config that no completion lists was in its place: it is kept as {path}" for path in copies)


def link_active(layout: Layout, slug: str, config: Path) -> Path:
    """Points `configs/active/<slug>.json` at a config file, relative, so that it holds wherever the root is mounted.

    Writes nothing where it does so already: the root may be read-only. Raises OSError.
    """
    folder = active_links(layout)
    link, target = folder / f"{slug}.json", os.path.relpath(config, folder)
    if link.is_symlink() and str(link.readlink()) == target:
        return link
    layout.caches.link(link, target, f".{link.name}.{secrets.token_hex(4)}.tmp")
    return link


def facts_of(layout: Layout, config: Path, link: Path | None) -> Artifacts:
    """What there is to say of a config file that is here, and of the link to it. Raises OSError."""
    folder = config.parent.name.removeprefix("triton_")
    return Artifacts(
        cache_dir=layout.located(layout.cache(CacheName.MOE_CONFIGS)),
        config_file=layout.located(config),
        config_hash=digest_of(read_bytes(config)),
        triton_version=folder.replace("_", "."),
        active_config_link=layout.located(link) if link else None,
    )


def config_of(layout: Layout, completion: Completion) -> Path | None:
    """The config file that a completion of `moe_tune` lists."""
    files = [path for path in completion.artifacts if path.startswith(f"{CacheName.MOE_CONFIGS.value}/")]
    named = [path for path in files if not path.endswith("_down.json")]
    return layout.profiles / named[0] if named else None


@dataclass(frozen=True)
class Adopted:
    """What there is to say of a config that is here already."""

    artifacts: Artifacts
    warnings: tuple[str, ...] = ()


def adopt_config(layout: Layout, completion: Completion) -> Adopted | None:
    """What a host does that has the config from another, or from an earlier run: the shipped ones beside it, the link.

    What cannot be made is left out, as on a root where this user may not write. None where the completion lists no
    config, or it cannot be read.
    """
    config = config_of(layout, completion)
    if config is None or not os.path.isfile(config):  # noqa: PTH113 - which raises nothing
        return None
    problem = seed_for_servers(layout)
    link = None
    with contextlib.suppress(OSError):
        link = link_active(layout, completion.identity.model_slug, config)
    with contextlib.suppress(OSError):
        warnings = (*([problem] if problem else []), *kept_aside(layout, config))
        return Adopted(facts_of(layout, config, link), warnings)
    return None
