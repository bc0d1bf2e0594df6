"""The coordinator's lease table on disk, so that its next life knows who held what."""

from pathlib import Path

from pydantic import ValidationError

from rayprep.host.atomic import write_text
from rayprep.model.base import read_tolerant, to_json
from rayprep.model.leases import LeaseTable


def read_leases(path: Path, ttl_s: float, now: float) -> LeaseTable:
    """The table as a new coordinator has to begin: a file, damaged or not, means that another one lived before.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        found = read_tolerant(LeaseTable, path.read_bytes())
    except FileNotFoundError:
        return LeaseTable(ttl_s=ttl_s)
    except ValidationError:
        found = LeaseTable(ttl_s=ttl_s)
    return found.model_copy(update={"ttl_s": ttl_s}).restored(now)


def write_leases(path: Path, table: LeaseTable) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(table))
