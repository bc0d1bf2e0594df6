"""The coordinator's lease table on disk, so that its next life knows who held what.

JSON lines, each with its checksum: the whole table, and below it a line for each grant since. A grant must be on disk
before it is said, and a thousand hosts have thousands of leases: to write all of them each time would take the
coordinator longer than all its other work. Anything but a grant is left out, for a new coordinator counts every lease
anew, for one time to live.
"""

import os
from pathlib import Path

from rayprep.base.errors import HostUnfit
from rayprep.base.records import Record
from rayprep.base.sealed import read_sealed, sealed_line
from rayprep.host.layout import os_error_type
from rayprep.host.owned import OwnedTree
from rayprep.model.fleet.leases import Lease, LeaseTable

LEAST_GRANTS = 1000
"""So many lines may follow at least, before the whole is written anew."""


class Grant(Record):
    """One line: the lease as it is from now on."""

    store: str
    key: str
    lease: Lease


class LeaseFile:
    """Written by one coordinator at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tree = OwnedTree(path.parent.parent)
        self._room = 0
        """So many grants may still be appended. At first none: the last life may have left half a line."""

    def read(self, ttl_s: float, now: float) -> LeaseTable:
        """The table as a new coordinator has to begin: a file, damaged or not, means that another one lived before.

        Raises:
            HostUnfit: the file is there and cannot be read.
        """
        try:
            first, *grants = self._tree.read(self._path).split(b"\n")
        except FileNotFoundError:
            return LeaseTable(ttl_s=ttl_s)
        except OSError as error:
            hint = "make it readable on the cluster's head, or remove it there while no run goes on"
            raise self._unfit("read", error, hint) from None
        try:
            found = read_sealed(LeaseTable, first)
        except ValueError:  # damaged, or of an earlier version: whoever holds a lease there is waited for
            found = LeaseTable(ttl_s=ttl_s)
        leases = {store: dict(keys) for store, keys in found.leases.items()}
        for grant in filter(None, map(_grant, filter(None, grants))):
            _take(leases.setdefault(grant.store, {}), grant)
        return found.model_copy(update={"leases": leases, "ttl_s": ttl_s}).restored(now)

    def keep(self, table: LeaseTable, store: str, key: str) -> None:
        """Puts the fresh grant of this lease on the disk. Raises HostUnfit, and writes the whole the next time."""
        try:
            self._keep(table, store, key)
        except OSError as error:
            raise self._unfit("written", error, "mend it on the cluster's head") from None

    def _unfit(self, what: str, error: OSError, hint: str) -> HostUnfit:
        return HostUnfit(
            f"lease file {self._path} cannot be {what}: {error.strerror or error}",
            hint=hint,
            error_type=os_error_type(error),
        )

    def _keep(self, table: LeaseTable, store: str, key: str) -> None:
        room, self._room = self._room, 0
        if room:
            line = sealed_line(Grant(store=store, key=key, lease=table.leases[store][key]))
            descriptor = self._tree.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._room = room - 1
        else:
            self._tree.write(self._path, sealed_line(table))
            self._room = max(LEAST_GRANTS, sum(map(len, table.leases.values())))


def _take(keys: dict[str, Lease], grant: Grant) -> None:
    """Keep the latest: a line that is there twice must not bring a holder back that has gone."""
    known = keys.get(grant.key)
    if known is None or grant.lease.epoch >= known.epoch:
        keys[grant.key] = grant.lease


def _grant(line: bytes) -> Grant | None:
    """None for a line that a dying coordinator left half written, before anybody heard of it."""
    try:
        return read_sealed(Grant, line)
    except ValueError:
        return None
