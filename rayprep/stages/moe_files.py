"""The files below `moe_configs/`: the configs that ship with SGLang, ours, and the link to the one in use.

A server that is sent there sees none of the configs in its own package (SGLANG_MOE_CONFIG_DIR), so they are all here.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from rayprep.host.atomic import write_bytes, write_text
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion
from rayprep.model.moe_space import KernelConfig
from rayprep.model.result import Artifacts

_IN_THE_PACKAGE = (
    "srt/layers/moe/moe_runner/triton_utils/configs",
    "srt/layers/moe/fused_moe_triton/configs",  # before 0.5.13
)


def shipped_configs() -> Path | None:
    """The folder in the installed SGLang, which is not imported to find it."""
    spec = importlib.util.find_spec("sglang")
    homes = [Path(home) for home in (spec.submodule_search_locations or ())] if spec else []
    return next((home / below for home in homes for below in _IN_THE_PACKAGE if (home / below).is_dir()), None)


def seed(layout: Layout, shipped: Path) -> int:
    """Copies what is not here yet, and leaves every file that is: it may be ours. Returns how many were copied.

    Any number may do so at once: a host that finds its config here asks for no lock.

    Raises:
        OSError: a file cannot be copied; no half of it is left under its name.
    """
    copied = 0
    for source in sorted(shipped.rglob("*.json")):
        path = layout.cache(CacheName.MOE_CONFIGS) / "configs" / source.relative_to(shipped)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, source.read_bytes())
            copied += 1
    return copied


def write_config(layout: Layout, folder: str, name: str, entries: Mapping[int, KernelConfig]) -> Path:
    """Writes a config file as SGLang reads it: number of tokens -> config. Raises OSError."""
    home = layout.cache(CacheName.MOE_CONFIGS) / "configs" / folder
    home.mkdir(parents=True, exist_ok=True)
    document = {str(size): config.entry() for size, config in sorted(entries.items())}
    write_text(home / name, json.dumps(document, indent=4) + "\n")
    return home / name


def link_active(layout: Layout, slug: str, config: Path) -> Path:
    """Points `configs/active/<slug>.json` at a config file, relative, so that it holds wherever the root is mounted.

    Writes nothing where it does so already: the root may be read-only. Raises OSError.
    """
    folder = layout.cache(CacheName.MOE_CONFIGS) / "configs" / "active"
    link, target = folder / f"{slug}.json", os.path.relpath(config, folder)
    if link.is_symlink() and str(link.readlink()) == target:
        return link
    folder.mkdir(exist_ok=True)
    aside = folder / f".{link.name}.{secrets.token_hex(4)}.tmp"
    aside.symlink_to(target)
    try:
        aside.rename(link)
    except OSError:
        aside.unlink()
        raise
    return link


def facts_of(layout: Layout, config: Path, link: Path | None) -> Artifacts:
    """What there is to say of a config file that is here, and of the link to it. Raises OSError."""
    folder = config.parent.name.removeprefix("triton_")
    return Artifacts(
        cache_dir=layout.located(layout.cache(CacheName.MOE_CONFIGS)),
        config_file=layout.located(config),
        config_hash="sha256:" + hashlib.sha256(config.read_bytes()).hexdigest(),
        triton_version=folder.replace("_", "."),
        active_config_link=layout.located(link) if link else None,
    )


def config_of(layout: Layout, completion: Completion) -> Path | None:
    """The config file that a completion of `moe_tune` lists."""
    files = [path for path in completion.artifacts if path.startswith(f"{CacheName.MOE_CONFIGS.value}/")]
    named = [path for path in files if not path.endswith("_down.json")]
    return layout.profiles / named[0] if named else None


def adopt_config(layout: Layout, completion: Completion) -> Artifacts | None:
    """What a host does that has the config from another, or from an earlier run: the shipped ones beside it, the link.

    What cannot be made is left out, as on a root where this user may not write. None where the completion lists no
    config, or it cannot be read.
    """
    config = config_of(layout, completion)
    if config is None or not os.path.isfile(config):  # noqa: PTH113 - which raises nothing
        return None
    link = None
    with contextlib.suppress(OSError):
        if shipped := shipped_configs():
            seed(layout, shipped)
    with contextlib.suppress(OSError):
        link = link_active(layout, completion.identity.model_slug, config)
    with contextlib.suppress(OSError):
        return facts_of(layout, config, link)
    return None
