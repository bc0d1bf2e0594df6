"""The highest epoch of a lease that has brought something here, by key: `<profiles>/.rayprep/epochs/<key>`.

A publisher that was overtaken may not know it yet, and nobody may be left to tell it. So the receiver refuses.
"""

from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.errors import ErrorType, HostUnfit, StageError
from rayprep.model.file_names import file_name


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
        layout.store.write(_file(layout, key), f"{epoch}\n")


def highest_epoch(layout: Layout, key: str) -> int | None:
    """None where nothing of this key came under a lease. Raises HostUnfit where that cannot be read."""
    path = _file(layout, key)
    try:
        return int(layout.store.read(path).decode("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HostUnfit(f"epoch file {path} cannot be read: {error}", hint="remove it when no run goes on") from None


def _file(layout: Layout, key: str) -> Path:
    return layout.epochs / file_name(key)
