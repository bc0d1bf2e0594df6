"""The nonce of a profiles root, by which hosts find out that they share it: `<profiles>/.rayprep/store-id`.

`<check>-<nonce>`: a nonce that was damaged would make two stores of one. Earlier versions wrote the nonce alone.
"""

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from rayprep.host.layout import Layout, root_unfit
from rayprep.model.errors import HostUnfit

_ID = re.compile(r"(?:([0-9a-f]{8})-)?([0-9a-f]{16})")


def store_id(layout: Layout) -> str:
    """Reads it, or makes it where there is none; of two hosts that make it at once, one wins.

    Raises:
        HostUnfit: it can be neither read nor made, or is damaged.
    """
    path = layout.store_id
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".store-id.", encoding="ascii") as file:
            nonce = secrets.token_hex(8)
            file.write(f"{_check(nonce)}-{nonce}\n")
            file.flush()
            Path(file.name).chmod(0o644)
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)  # a rename would take the winner's away
        return _read(path)
    except OSError as error:
        raise root_unfit(layout.profiles, "profiles", error) from None


def _read(path: Path) -> str:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    found = _ID.fullmatch(text)
    if found is None or found[1] not in (None, _check(found[2])):
        raise HostUnfit(f"store id {path} is damaged", hint="remove it when no run goes on")
    return text


def _check(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()[:8]
