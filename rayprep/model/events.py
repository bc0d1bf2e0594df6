"""What a run says while it goes on: one event, one human line, one `OPTIMIZE_JSON` line."""

from enum import StrEnum

from rayprep.base.errors import ErrorType, RayprepError
from rayprep.base.records import Record, Utc, utc_now
from rayprep.base.secrets import redacted_json, redacted_text
from rayprep.base.text import one_line, printable_json

Settings = dict[str, str | int | float | tuple[int, ...] | None]


class Phase(StrEnum):
    START = "start"
    PROGRESS = "progress"
    END = "end"
    WAIT_LOCK = "wait_lock"
    WARNING = "warning"


class Event(Record):
    """One line of the session log. Fields that are null are left out of the JSON."""

    name: str
    """The stage, `verify` for the proof, or `ensure` for the run as a whole."""
    phase: Phase
    ts: Utc
    settings: Settings | None = None
    elapsed_s: float | None = None
    hint: str | None = None
    done: int | None = None
    total: int | None = None
    status: str | None = None
    error_type: ErrorType | None = None
    reason: str | None = None
    duration_s: float | None = None
    slug: str | None = None
    held_for_s: float | None = None
    holder: str | None = None
    message: str | None = None
    host: str | None = None
    """Which host of a fleet said it; null where there is one."""

    @property
    def json_line(self) -> str:
        return "OPTIMIZE_JSON " + printable_json(redacted_json(self.model_dump_json(exclude_none=True)))

    @property
    def human_line(self) -> str:
        """`[OPTIMIZE deep_gemm] starting {model=..., tp=...}` and its like."""
        where = f"{self.host}: " if self.host else ""
        return redacted_text(one_line(f"[OPTIMIZE {self.name}] {where}{self._words()}"))

    @property
    def remark(self) -> str:
        """What an end says beside its status: its message, and what to do about it."""
        remedy = f" ({self.hint})" if self.hint else ""
        return f"{self.message}{remedy}" if self.message else ""

    def _words(self) -> str:
        elapsed = f" after {self.elapsed_s:.0f} s" if self.elapsed_s is not None else ""
        match self.phase:
            case Phase.START:
                inner = ", ".join(f"{key}={_plain(value)}" for key, value in (self.settings or {}).items())
                return f"starting {{{inner}}}"
            case Phase.PROGRESS:
                count = f" ({self.done}/{self.total})" if self.total else ""
                return f"{self.hint or 'running'}{count}{elapsed}"
            case Phase.WAIT_LOCK:
                what = self.hint or self.slug
                return f"waiting for the lock of {what}, held for {self.held_for_s or 0:.0f} s by {self.holder}"
            case Phase.WARNING:
                return f"warning: {self.message}"
            case Phase.END:
                return self._end_words()

    def _end_words(self) -> str:
        why = self.error_type or self.reason
        text = f"{self.status}" + (f" ({why})" if why else "")
        if self.duration_s:
            text += f" in {self.duration_s:.1f} s"
        return text + (f": {self.remark}" if self.remark else "")


def _plain(value: object) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


def event(name: str, phase: Phase, **fields: object) -> Event:
    """An event of this moment."""
    return Event.model_validate({"name": name, "phase": phase, "ts": utc_now(), **fields})


def run_end(status: str, error: RayprepError | None, duration_s: float | None = None) -> Event:
    """How the run as a whole ended, and by which error, if by any."""
    why = {"error_type": error.error_type, "message": error.message, "hint": error.hint or None} if error else {}
    return event("ensure", Phase.END, status=status, duration_s=duration_s, **why)
