"""A model's label for folders, log lines and people. It identifies nothing: the key does."""

import re
from pathlib import PurePosixPath

from rayprep.base.errors import BadRequest

_HUB_FOLDER = re.compile(r"models--(?:.+?--)?(.+)")


def model_slug(name: str) -> str:
    """`Qwen/Qwen2.5-7B` -> `qwen2.5-7b`; a path gives its folder's name, a hub snapshot its model's.

    Raises:
        BadRequest: nothing that can be a file name is left.
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part not in ("/", ".", "..")]
    if parts and parts[-1] == "config.json":
        parts.pop()
    hub = next((match for part in parts if (match := _HUB_FOLDER.fullmatch(part))), None)
    label = hub.group(1) if hub else parts[-1] if parts else ""
    slug = re.sub(r"[^a-z0-9._-]+", "-", label.lower()).strip(".-_")[:100].rstrip(".-_")
    if not slug:
        raise BadRequest(f"no name for the model can be made from {name!r}", hint="rename its folder")
    return slug
