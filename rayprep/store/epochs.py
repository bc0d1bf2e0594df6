"""The highest epoch of a lease that has brought something here, by key: `<profiles>/.rayprep/epochs/<key>`.

A publisher that was overtaken may not know it yet, and nobody may be left to tell it. So the receiver refuses.
"""

import re
from pathlib import Path

from pydantic import Field

from rayprep.base.errors import ErrorType, HostUnfit, StageError
from rayprep.base.file_names import file_name
from rayprep.base.records import Record
from rayprep.base.sealed import read_sealed, sealed_line
from rayprep.host.layout import Layout

_PLAIN = re.compile(rb"\d{1,18}\n?")
"""As an earlier version wrote it, without a checksum."""


class Epoch(Record):
    """The file's content."""

    epoch: int = Field(ge=0)


def advance_epoch(layout: Layout, key: str, epoch: int) -> None:
    """Remembers `epoch` where it is the highest so far. For the holder of the store's lock.

    Raises:
        StageError: `lease_lost`, a higher one was here before.
        HostUnfit: what was here before cannot be read.
        OSError: it cannot be written.
    """
    seen = highest_epoch(layout, key)
    if seen is not None and seen > epoch:
        raise StageError(ErrorType.LEASE_LOST, f"{key} arrives with epoch {epoch}, and epoch {seen} was here before")
    if seen is None or seen < epoch:
        layout.store.write(_file(layout, key), sealed_line(Epoch(epoch=epoch)))


def highest_epoch(layout: Layout, key: str) -> int | None:
    """None where nothing of this key came under a lease. Raises HostUnfit where that cannot be read."""
    path = _file(layout, key)
    try:
        data = layout.store.read(path)
        return int(data) if _PLAIN.fullmatch(data) else read_sealed(Epoch, data).epoch
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise HostUnfit(f"epoch file {path} cannot be read: {why}", hint="remove it when no run goes on") from None


def _file(layout: Layout, key: str) -> Path:
    return layout.epochs / file_name(key)
