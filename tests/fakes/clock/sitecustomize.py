"""Another clock for the Python processes that have this folder in PYTHONPATH, off by FAKE_CLOCK_S seconds.

libfaketime would do it for all processes, and Ray's workers do not start under it (2.60: their threads' waits time out
at once). The monotonic clock, which no host shares with another, is as it was.
"""

import datetime
import os
import time
from typing import Self

_OFF_S = float(os.environ["FAKE_CLOCK_S"])
_time, _time_ns = time.time, time.time_ns


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time = lambda: _time() + _OFF_S
time.time_ns = lambda: _time_ns() + int(_OFF_S * 10**9)
datetime.datetime = Datetime  # type: ignore[misc]  # a class is replaced on purpose, for whoever reads it from now on
