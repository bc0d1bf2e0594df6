"""The nonce of a profiles root, by which hosts find out that they share it: `<profiles>/.rayprep/store-id`.

`<check>-<nonce>.`: a nonce that was damaged would make two stores of one. Earlier versions wrote the nonce alone, and
the full stop has no piece of today's form, with anything taken out of it, look like one.
"""

import contextlib
import hashlib
import os
import re
import secrets

from rayprep.base.errors import HostUnfit
from rayprep.host.layout import Layout, root_unfit

_ID = re.compile(r"(?:(?P<check>[0-9a-f]{8})-(?P<proved>[0-9a-f]{16})\.?|(?P<plain>[0-9a-f]{16}))")

_LONGEST = 100
"""Bytes."""


def store_id(layout: Layout) -> str:
    """Read it, or make it where there is none; of two hosts that make it at once, one wins.

    Raises:
        HostUnfit: it can be neither read nor made, or is damaged.
    """
    path = layout.store_id
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(layout)
        aside, nonce = f".store-id.{secrets.token_hex(6)}.tmp", secrets.token_hex(8)
        layout.store.write(path.with_name(aside), f"{_check(nonce)}-{nonce}.\n")
        with layout.store.folder(path.parent) as folder:
            try:
                # Not a rename, which would take the winner's away.
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.unlink(aside, dir_fd=folder)
        return _read(layout)
    except OSError as error:
        raise root_unfit(layout.profiles, "profiles", error) from None


def _read(layout: Layout) -> str:
    text = layout.store.read(layout.store_id, _LONGEST).decode("ascii", errors="replace").strip()
    found = _ID.fullmatch(text)
    nonce = (found["proved"] or found["plain"]) if found else ""
    if found is None or found["check"] not in (None, _check(nonce)):
        raise HostUnfit(f"store id {layout.store_id} is damaged", hint="remove it when no run goes on")
    return nonce


def _check(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()[:8]
