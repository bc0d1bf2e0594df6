"""One start of a server: its process tree, its log, and what became of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.guard import lives
from rayprep.host.process import Child
from rayprep.model.blame import ServerDied
from rayprep.model.process_end import Cleanup
from rayprep.server.log_follower import LogFollower
from rayprep.sglang.death import Death
from rayprep.sglang.failures import classify_failure, hint_with_log, telling_line
from rayprep.sglang.log import Hint, LogReader

_TAIL = 12
_NOTICED_S = 0.5
"""The guard looks for its command's end ten times in this time."""


@dataclass(frozen=True)
class Watch:
    """How the run looks on. `deadline` is on the monotonic clock; `tick` is called several times a second."""

    deadline: float
    cancelled: Callable[[], bool]
    tick: Callable[[], None]
    report: Callable[[str, int | None, int | None], None]


class ServerProcess:
    """A server under a guard. Its log is written by the tree itself and read here, a part in every turn of a wait."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        watch: Watch,
        lock_descriptors: Sequence[int],
        grace_s: float,
    ) -> None:
        self._watch, self._log, self._started_at = watch, log, time.time()
        self.reader = LogReader()
        self._follower = LogFollower(log, self.reader.hear)
        self._process: psutil.Process | None = None
        self._reported: Hint | None = None
        self._child = Child(command, env, log, lock_descriptors, grace_s, all_to_log=True)

    @property
    def pid(self) -> int | None:
        """Of the server itself, not of its guard."""
        return self._process.pid if self._process else None

    def log_tail(self) -> tuple[str, ...]:
        return tuple(self.reader.tail)[-_TAIL:]

    def look(self) -> bool:
        """Belongs in every turn of every wait. Returns whether the log is ahead of us.

        Raises:
            Interrupted: the run was cancelled.
            StageError: `stage_timeout`.
        """
        self._watch.tick()
        if self._watch.cancelled():
            raise Interrupted
        if time.monotonic() >= self._watch.deadline:
            where = self.reader.hint.text if self.reader.hint else "no progress in its log"
            message = f"the warm-up server ran longer than the stage's time-out, last seen: {where}"
            raise StageError(ErrorType.STAGE_TIMEOUT, message, log_tail=self.log_tail())
        if self._process is None:
            self._process = self._child.command()
        behind = self._follower.follow()
        hint = self.reader.hint
        if hint and hint != self._reported:
            self._reported = hint
            self._watch.report(hint.text, hint.done, hint.total)
        return behind

    def is_dead(self) -> bool:
        """Of the server itself, whatever of its tree is left; the guard is over only after that."""
        return self._child.is_over or (self._process is not None and not lives(self._process))

    def listens_at(self, port: int) -> bool:
        """Whether the one that listens there belongs to this server."""
        for process in self._child.tree():
            try:
                found = process.net_connections("tcp")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found):
                return True
        return False

    def failure(self) -> StageError:
        """Why a server that is dead has died."""
        until = time.monotonic() + _NOTICED_S
        while not self._child.is_over and time.monotonic() < until:
            time.sleep(_NOTICED_S / 25)  # a zombie's last threads may still run: then its status is not to be had yet
        status, _ = self._child.end()
        self._follower.finish()
        if status < 0:  # Ray kills a worker's children before the worker itself when its host is lost
            message = f"the guard of the warm-up server was killed by signal {-status}"
            return StageError(ErrorType.NODE_LOST, message, log_tail=self.log_tail())
        error_type = classify_failure(self.reader.signs, status)
        ended = f"signal {status - 128}" if status > 128 else f"status {status}"
        when = "after" if self.reader.ready else "before"
        death = self.reader.death
        cause = telling_line(self.reader.signs, error_type, death.line if death else None)
        message = f"the warm-up server ended by {ended} {when} it was ready" + (f": {cause}" if cause else "")
        advice = "" if status or self.reader.ready else "the command has to stay in the foreground as long as it serves"
        hint = hint_with_log(error_type, str(self._log), advice)
        return ServerDied(
            error_type,
            message,
            death=death or (Death(exception="", while_capturing=True) if self.reader.capturing else None),
            moe_configs=self.reader.moe_configs,
            started_at=self._started_at,
            signal=status - 128 if status > 128 else None,
            hint=hint,
            log_tail=self.log_tail(),
        )

    def end(self) -> Cleanup:
        """Ends the whole tree, and reads the log to its end."""
        with self._child as child:
            _, cleanup = child.end()
        self._follower.finish()
        return cleanup
