"""The nonce of a profiles root, by which hosts find out that they share it: `<profiles>/.rayprep/store-id`."""

import contextlib
import errno
import os
import secrets

from rayprep.host.layout import Layout, root_unfit

_LONGEST = 100
"""Bytes."""


def store_id(layout: Layout) -> str:
    """Read it, or make it where there is none; of two hosts that make it at once, one wins.

    Raises:
        HostUnfit: it can be neither read nor made.
    """
    path = layout.store_id
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(layout)
        aside = f".store-id.{secrets.token_hex(6)}.tmp"
        layout.store.write(path.with_name(aside), secrets.token_hex(8) + "\n")
        with layout.store.folder(path.parent) as folder:
            try:
                # Not a rename, which would take the winner's away.
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.unlink(aside, dir_fd=folder)
        return _read(layout)
    except (OSError, UnicodeDecodeError) as error:
        unfit = error if isinstance(error, OSError) else OSError(errno.EILSEQ, "it is no text", str(path))
        raise root_unfit(layout.profiles, "profiles", unfit) from None


def _read(layout: Layout) -> str:
    return layout.store.read(layout.store_id, _LONGEST).decode("ascii").strip()
