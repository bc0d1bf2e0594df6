"""Everything that rayprep can say went wrong.

    RayprepError
    |-- BadRequest        exit 2    the flags, the spec file or the model ask for something impossible
    |-- HostUnfit         exit 3    this host cannot do it (no root folder, no GPU, no compiler)
    |-- LockTimeout       exit 4    somebody else held a lock until the time-out
    |-- StageError        exit 10+  a stage failed; its code is the stage's
    |   `-- Unsupported             it will fail so each time, until a version or a flag changes
    `-- Interrupted       exit 130  Ctrl-C or SIGTERM

Each is one line that says what went wrong and with which value, and a hint that says what to do. All survive
pickling, since they cross Ray's process boundaries.
"""

from collections.abc import Iterator
from enum import StrEnum

from rayprep.base.records import encodable
from rayprep.base.secrets import redacted_text
from rayprep.base.text import one_line


class ErrorType(StrEnum):
    """The `error_type` of a stage or a run. The first nine are the seed contract's, the rest ours."""

    NVRTC_COMPILE_FAILED = "nvrtc_compile_failed"
    OOM_DURING_WARMUP = "oom_during_warmup"
    TUNER_EXECUTION_ERROR = "tuner_execution_error"
    VERIFY_LOG_MISSING = "verify_log_missing"
    LOCK_TIMEOUT = "lock_timeout"
    PORT_ALL_BUSY = "port_all_busy"
    PERMISSIONS_UNEXPECTED = "permissions_unexpected"
    INSUFFICIENT_DISK = "insufficient_disk"
    CLEANUP_FAILED = "cleanup_failed"
    SERVER_START_FAILED = "server_start_failed"
    SERVER_CRASHED = "server_crashed"
    STAGE_TIMEOUT = "stage_timeout"
    VERIFY_FAILED = "verify_failed"
    NODE_LOST = "node_lost"
    LEASE_LOST = "lease_lost"
    TOOLCHAIN_MISMATCH = "toolchain_mismatch"
    COMPILE_FAILED = "compile_failed"
    RAY_UNAVAILABLE = "ray_unavailable"
    UNSUPPORTED = "unsupported"
    WITHDRAWN = "withdrawn"
    INTERRUPTED = "interrupted"
    INTERNAL_ERROR = "internal_error"


MEANING: dict[ErrorType, tuple[str, str]] = {
    ErrorType.NVRTC_COMPILE_FAILED: (
        "NVRTC refused a kernel's source",
        "read the stage's log; try nvcc instead of NVRTC",
    ),
    ErrorType.OOM_DURING_WARMUP: (
        "the warm-up server ran out of GPU memory",
        "lower --mem-fraction, or free the GPU",
    ),
    ErrorType.TUNER_EXECUTION_ERROR: ("the MoE tuner failed", "read the stage's log"),
    ErrorType.VERIFY_LOG_MISSING: (
        "the server never said that it uses the tuned config",
        "compare the config's file name with the one the server's log looks for",
    ),
    ErrorType.LOCK_TIMEOUT: (
        "somebody else held a lock until the time-out",
        "wait for the named holder, or raise --timeout",
    ),
    ErrorType.PORT_ALL_BUSY: ("every warm-up port is taken", "free one of them, or give --warmup-port"),
    ErrorType.PERMISSIONS_UNEXPECTED: (
        "a file or folder cannot be written or read by this user",
        "chown or chmod the named path, or choose another --profiles-root",
    ),
    ErrorType.INSUFFICIENT_DISK: (
        "less disk is free than the stage needs",
        "free space under the named path (`rayprep reset` helps), or choose another --profiles-root",
    ),
    ErrorType.CLEANUP_FAILED: ("a process that the stage started is still alive", "end the named process"),
    ErrorType.SERVER_START_FAILED: ("the warm-up server never became ready", "read the stage's log"),
    ErrorType.SERVER_CRASHED: ("the warm-up server died", "read the stage's log"),
    ErrorType.STAGE_TIMEOUT: ("the stage ran longer than --timeout", "raise --timeout"),
    ErrorType.VERIFY_FAILED: (
        "a second process still had to compile something",
        "read which files are new; run again with --rebuild for the stage",
    ),
    ErrorType.NODE_LOST: (
        "the worker that ran the stages died",
        "run ensure again; it repairs what was half done",
    ),
    ErrorType.LEASE_LOST: ("another host took over the build", "run ensure again"),
    ErrorType.TOOLCHAIN_MISMATCH: (
        "a compiler or library is missing or of the wrong version",
        "run `rayprep doctor`; it names the remedy",
    ),
    ErrorType.COMPILE_FAILED: ("a kernel did not compile, or computed something else", "read the stage's log"),
    ErrorType.RAY_UNAVAILABLE: ("Ray cannot be started or joined", "check --address, or run `rayprep doctor`"),
    ErrorType.UNSUPPORTED: ("this version of rayprep cannot do that here", "leave the stage out with --skip"),
    ErrorType.WITHDRAWN: (
        "a server died of what the stage had made, and lives without it",
        "servers do without it, and it is kept with the reason; report what died",
    ),
    ErrorType.INTERNAL_ERROR: ("rayprep itself failed", "run again with --debug, and report what it shows"),
    ErrorType.INTERRUPTED: ("stopped by Ctrl-C or SIGTERM", "run ensure again; it goes on where it stopped"),
}
"""What each error type means, and what to do about it."""


class RayprepError(Exception):
    """An error with a one-line message and a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", error_type: ErrorType | None = None) -> None:
        # A path with stray bytes must not make the error itself impossible to print or to write. A URL that is quoted
        # in it may hold a password.
        self.message = redacted_text(encodable(message))
        super().__init__(self.message)
        self.hint = redacted_text(encodable(hint)) or (MEANING[error_type][1] if error_type else "")
        self.error_type = error_type

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), dict(self.__dict__)))

    @property
    def line(self) -> str:
        """The whole error in one line."""
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        return one_line(text)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, and inward what it was raised from, or while handling; each once."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        step = step.__cause__ or step.__context__


def _rebuild(kind: type[RayprepError], state: dict[str, object]) -> RayprepError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class BadRequest(RayprepError):
    """The request is wrong in itself."""

    exit_code = 2


class HostUnfit(RayprepError):
    """The request is fine, but this host cannot do it."""

    exit_code = 3


class LockTimeout(RayprepError):
    """A lock was held by somebody else until the time-out."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, error_type=ErrorType.LOCK_TIMEOUT)


class StageError(RayprepError):
    """A stage could not do its work. `payload` joins the error in the result, e.g. `required_bytes`."""

    exit_code = 10

    def __init__(
        self,
        error_type: ErrorType,
        message: str,
        *,
        hint: str = "",
        payload: dict[str, int] | None = None,
        log_tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, error_type=error_type)
        self.payload = payload or {}
        self.log_tail = log_tail


class Unsupported(StageError):
    """What is asked for does not work with these versions and flags, which is remembered: trying it is dear."""

    def __init__(self, message: str, *, hint: str = "", log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(ErrorType.UNSUPPORTED, message, hint=hint, log_tail=log_tail)


class Interrupted(RayprepError):
    """Ctrl-C or SIGTERM."""

    exit_code = 130

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, error_type=ErrorType.INTERRUPTED)
