"""Ctrl-C, SIGTERM and a closed terminal, as an exception or as a flag."""

import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Within the block the signals raise KeyboardInterrupt, or set `asked` once `as_flag` was called.

    For the main thread only. Who was started by nohup outlives its terminal.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._signals = [each for each in _SIGNALS if not _is_for_nobody(each)]

    def as_flag(self) -> None:
        """From now on work goes on, and somebody looks at `asked`."""
        for signum in self._signals:
            signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def __enter__(self) -> "Interrupts":
        for signum in self._signals:
            self._before[signum] = signal.signal(signum, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def _is_for_nobody(signum: signal.Signals) -> bool:
    return signum is signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN
