"""Finds a model's config.json: a folder, that file, a config that rayprep ships, or the local Hugging Face cache.

Nothing is ever downloaded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rayprep
from rayprep.base.errors import BadRequest
from rayprep.base.records import encodable
from rayprep.host.environment import hub_folders
from rayprep.host.files import read_text
from rayprep.model.slug import model_slug
from rayprep.sglang.architecture import QUANTIZATION_FILES, Architecture, config_digest, parse_architecture

_LARGEST = 4 << 20
"""Bytes of a config.json; real ones have some kilobytes, a hundred where they list each layer's quantisation."""
SHIPPED = Path(rayprep.__file__).parent / "configs"
"""Small models that come with the package, for trying things out: `tiny-dense`, `tiny-moe`."""


@dataclass(frozen=True)
class ModelFiles:
    """A model as found on this host. `digest` identifies it, `slug` only labels it."""

    slug: str
    source: Path
    digest: str
    architecture: Architecture


def find_model(name: str, environ: Mapping[str, str]) -> ModelFiles:
    """Reads a model's config.

    Raises:
        BadRequest: there is no such model, or its config.json cannot be read.
    """
    try:
        local = _in_file_system(name)
        source = local or _shipped(name) or _in_hub_cache(name, environ)
        text = read_text(source, _LARGEST)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        hint = "mend it, or give another model"
        raise BadRequest(f"the config.json of model {name} cannot be read: {why}", hint=hint) from None
    if encodable(str(source)) != str(source):
        raise BadRequest(f"model config {source}: its path is not UTF-8", hint="rename its folder")
    beside = _beside(source)
    architecture = parse_architecture(text, str(source), beside)
    return ModelFiles(model_slug(str(local or name)), source, config_digest(text, beside), architecture)


def _beside(source: Path) -> dict[str, str]:
    """Read what else of the folder says how the weights are stored, by name.

    Raises:
        BadRequest: one of the files cannot be read.
    """
    if source.name != "config.json":  # a server is given this one file, in a folder of its own
        return {}
    places = {name: source.with_name(name) for name in QUANTIZATION_FILES}
    texts = {}
    for name, path in places.items():
        try:
            if path.is_file():
                texts[name] = read_text(path, _LARGEST)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise BadRequest(f"{path} cannot be read: {why}", hint="mend it, or move it away") from None
    return texts


def _in_file_system(name: str) -> Path | None:
    """A folder's config.json, or that file. Absolute and without `..`, so that every way to say it gives one slug."""
    path = Path(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111 - Path keeps `..`, raises on `~x`
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadRequest(f"model folder {path} has no config.json", hint="give the folder that holds it")
        return path / "config.json"
    if name.startswith(("/", "~", "./", "../")) and not path.exists():
        raise BadRequest(f"model folder {path} does not exist", hint="give a folder that holds a config.json")
    return path if path.is_file() else None


def _shipped(name: str) -> Path | None:
    path = SHIPPED / name / "config.json"
    return path if path.is_file() else None


def _in_hub_cache(name: str, environ: Mapping[str, str]) -> Path:
    """Source: huggingface_hub, "Understand caching": models--ORG--NAME/{refs/main,snapshots/REVISION/}."""
    hub = Path(hub_folders(environ)["HF_HUB_CACHE"])
    folder = hub / ("models--" + name.replace("/", "--"))
    reference = folder / "refs" / "main"
    if reference.is_file():
        revision = read_text(reference, 4096).strip()
        config = folder / "snapshots" / revision / "config.json"
        if config.is_file():
            return config
    shipped = ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))
    raise BadRequest(
        f"model {name!r} is no folder here and is not in the Hugging Face cache {hub}",
        hint=f"fetch it with `hf download {name} config.json`, or give a folder; rayprep ships {shipped}",
    )
