"""What lies below `moe_configs/` beside what a server reads: the links to the configs in use, and what a user had made.

configs/triton_<version>/<name>.json        what a server reads: SGLang's own, ours, a user's
configs/active/<slug>.json                  links to those in use
kept/triton_<version>/<name>.json.<hash>    a user's, in whose place there is another now
"""

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rayprep.host.files import read_bytes
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from rayprep.store.entries import plain_folder

_IN_THE_PACKAGE = (
    "srt/layers/moe/moe_runner/triton_utils/configs",
    "srt/layers/moe/fused_moe_triton/configs",  # before 0.5.13
)
_CONFIGS = f"{CacheName.MOE_CONFIGS}/configs/"


def shipped_configs() -> Path | None:
    """The folder in the installed SGLang, which is not imported to find it."""
    spec = importlib.util.find_spec("sglang")
    homes = [Path(home) for home in (spec.submodule_search_locations or ())] if spec else []
    return next((home / below for home in homes for below in _IN_THE_PACKAGE if (home / below).is_dir()), None)


def digest_of(config: bytes) -> str:
    """`sha256:...`, as a completion lists it."""
    return "sha256:" + hashlib.sha256(config).hexdigest()


def put_back_shipped(layout: Layout, path: Path) -> None:
    """Copies what ships with SGLang under the name of a config that is gone, if anything does. Raises OSError."""
    if (own := _shipped(f"{path.parent.name}/{path.name}")) is not None:
        layout.caches.write(path, own)


def is_config(data: bytes) -> bool:
    """Whether a server could read it: a JSON object."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def keep_aside(layout: Layout, files: Iterable[str]) -> None:
    """Copies the configs among `files` that a user made to where no server looks.

    Call it before one is removed or written over, and before completions go. A user's are those that no completion
    lists with the content that they have, and that do not ship with SGLang.

    Args:
        files: paths below the profiles root, of any cache.

    Raises:
        OSError: a file cannot be read or is behind a link, or its copy cannot be made.
    """
    found = {below: data for below in _configs_among(files) if (data := _read(layout, below)) and is_config(data)}
    if not found:
        return
    completions, _ = read_completions(layout, StageName.MOE_TUNE)
    listed = {digest for each in completions for _, digest in each.artifacts.values()}
    for below, data in found.items():
        if digest_of(data) not in listed and not _ships(below, data):
            _keep(layout, below, data)


def _configs_among(files: Iterable[str]) -> Iterator[str]:
    """Below `configs/`."""
    return (path.removeprefix(_CONFIGS) for path in files if path.startswith(_CONFIGS))


def _read(layout: Layout, below: str) -> bytes | None:
    folder, _, name = below.rpartition("/")
    path = plain_folder(layout.cache(CacheName.MOE_CONFIGS), f"configs/{folder}") / name
    return layout.caches.read(path) if layout.caches.is_file(path) else None


def _ships(below: str, data: bytes) -> bool:
    return _shipped(below) == data


def _shipped(below: str) -> bytes | None:
    """Read the config that ships with SGLang as `triton_<version>/<name>`; None where there is none. Raises OSError."""
    home = shipped_configs()
    return read_bytes(home / below) if home and (home / below).is_file() else None


def _keep(layout: Layout, below: str, data: bytes) -> None:
    """Under a name that the content is part of, so that no copy takes another one's place."""
    folder, _, name = below.rpartition("/")
    home = plain_folder(layout.cache(CacheName.MOE_CONFIGS), f"kept/{folder}")
    copy = home / f"{name}.{digest_of(data).removeprefix('sha256:')[:16]}"
    if not layout.caches.is_file(copy):
        layout.caches.write(copy, data)


def kept_copies(layout: Layout, config: Path) -> list[Path]:
    """Of a user's configs in whose place `config` is, or its `_down` twin."""
    folder = layout.cache(CacheName.MOE_CONFIGS) / "kept" / config.parent.name
    names = (f"{config.stem}.json.", f"{config.stem}_down.json.")
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.name.startswith(names))
    return []


def active_links(layout: Layout) -> Path:
    """The folder of the links to the configs in use. Raises OSError where it is behind a link itself."""
    return plain_folder(layout.cache(CacheName.MOE_CONFIGS), "configs/active")


def drop_dangling_links(layout: Layout) -> list[Path]:
    """Removes the links to configs that are gone, and their folder with the last of them.

    Raises:
        OSError: one cannot be removed.
    """
    try:
        folder = active_links(layout)
    except OSError:
        return []  # what lies behind a link is not ours
    links = sorted(folder.iterdir()) if folder.is_dir() else []
    dangling = [link for link in links if link.is_symlink() and not os.path.exists(link)]  # noqa: PTH110 - never raises
    for link in dangling:
        layout.caches.unlink(link)
    if dangling:
        with contextlib.suppress(OSError):  # something else is in it
            layout.caches.rmdir(folder)
            layout.caches.rmdir(folder.parent)
    return dangling
