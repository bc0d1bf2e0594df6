"""The log of a tuning's measurements: one line of JSON each, written as it is made, so that none is made twice."""

import errno
import os
from collections.abc import Collection
from pathlib import Path

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.sealed import read_sealed, sealed_line
from rayprep.host.files import open_file, read_whole
from rayprep.stages.moe_tune.trial import Measurement, Trial


class MeasurementLog:
    """For one writer, whom the store's lock makes the only one.

    Raises:
        HostUnfit: there is something under its name that is no plain file. A link is not followed.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[Trial, Measurement] = {}
        self.unreadable = 0
        """Lines that are no measurement: what a killed writer, or a full disk, left, or without a right checksum.

        An earlier version's have none: what they say is measured again."""
        for line in self._lines():
            self._take(line)

    def _lines(self) -> list[bytes]:
        """All but the empty ones: of these a file can hold millions, and parsing each takes longer than reading all."""
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return []
        try:
            return list(filter(None, read_whole(descriptor, str(self._path)).split(b"\n")))
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            return open_file(self._path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EMLINK):
                raise
            message = f"{self._path} is no plain file, and the tuner writes its measurements there"
            raise HostUnfit(message, hint="move it away", error_type=ErrorType.PERMISSIONS_UNEXPECTED) from None

    def _take(self, line: bytes) -> None:
        try:
            found = read_sealed(Measurement, line)
        except ValueError:
            self.unreadable += 1
        else:
            self.done[found.trial] = found

    def retry(self, sizes: Collection[int]) -> None:
        """Counts as not measured what failed at these sizes for a reason that may pass."""
        self.done = {trial: each for trial, each in self.done.items() if trial.tokens not in sizes or not each.may_pass}

    def append(self, measured: Measurement) -> None:
        """In place of what there may be of an earlier run. Raises as above."""
        self.done[measured.trial] = measured
        descriptor = self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            end = os.fstat(descriptor).st_size
            # After half a line a new one begins.
            start = b"" if not end or os.pread(descriptor, 1, end - 1) == b"\n" else b"\n"
            data = start + sealed_line(measured).encode()
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
