"""The nonce of a profiles root, by which hosts find out that they share it: `<profiles>/.rayprep/store-id`."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from rayprep.host.layout import Layout, root_unfit


def store_id(layout: Layout) -> str:
    """Reads it, or makes it where there is none; of two hosts that make it at once, one wins.

    Raises:
        HostUnfit: it can be neither read nor made.
    """
    path = layout.store_id
    try:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text(encoding="ascii").strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".store-id.", encoding="ascii") as file:
            file.write(secrets.token_hex(8) + "\n")
            file.flush()
            Path(file.name).chmod(0o644)
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)  # a rename would take the winner's away
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise root_unfit(layout.profiles, "profiles", error) from None
