"""Errors as one line on standard error and an exit status."""

from rayprep.base.errors import RayprepError
from rayprep.cli import output
from rayprep.model.events import Phase, event


def fail(error: Exception, *, as_event: bool, about: str = "") -> int:
    """Say what went wrong, and with which run `about`; for tools on standard output, too. Return the exit status."""
    if not isinstance(error, RayprepError):
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        kind = type(error).__name__
        output.error(kind, f"{what or kind} (run again with --debug to see where)")
        return 3 if isinstance(error, OSError) else 1
    if as_event:
        end = event("ensure", Phase.END, status="error", error_type=error.error_type, message=error.line)
        output.json_text(end.json_line)
    say(error, about=about)
    return error.exit_code


def say(error: RayprepError, *, about: str = "") -> None:
    """Say an error's one line."""
    kind = error.error_type.value if error.error_type else type(error).__name__
    output.error(kind, f"{about}: {error.line}" if about else error.line)
