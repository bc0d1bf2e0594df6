"""The entry point: sets the process up, runs a command, turns every failure into one line and an exit code."""

import gc
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from rayprep import umask_for

if TYPE_CHECKING:
    import typer

    from rayprep.base.errors import RayprepError


def main() -> int:
    """`rayprep`."""
    from rayprep.cli.app import app

    return run(app)


def run(app: "typer.Typer", argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit status. `--debug` lets traces through."""
    arguments = sys.argv[1:] if argv is None else argv
    os.umask(umask_for(os.umask(0o077)))
    _never_fail_to_encode(sys.stdout, sys.stderr)
    # A look at 100,000 files makes as many objects and no cycles: the collector would walk them all again and again.
    gc.disable()
    try:
        app(args=arguments, standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except KeyboardInterrupt:
        return say("interrupted", "interrupted", 130)
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one line or in a trace, and in a status
        if "--debug" in arguments:
            from rayprep.cli import output

            output.trace(error)
            return 1
        return fail(error, as_event="--json" in arguments and "ensure" in arguments[:2])
    return 0


def _never_fail_to_encode(*streams: TextIO | None) -> None:
    """Has the streams write out whatever their encoding cannot hold, in place of an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # none where it was closed
            stream.reconfigure(errors="backslashreplace")


def fail(error: Exception, *, as_event: bool, about: str = "") -> int:
    """Says what went wrong, and with which run `about`. Returns the exit status."""
    from rayprep.base.errors import RayprepError

    if not isinstance(error, RayprepError):
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        kind = type(error).__name__
        return say(
            kind, f"{what or kind} (run again with --debug to see where)", 3 if isinstance(error, OSError) else 1
        )
    if as_event:
        _say_json(error)
    line = f"{about}: {error.line}" if about else error.line
    return say(error.error_type.value if error.error_type else type(error).__name__, line, error.exit_code)


def _say_json(error: Exception) -> None:
    from rayprep.base.errors import RayprepError
    from rayprep.cli import output
    from rayprep.model.events import Phase, event

    assert isinstance(error, RayprepError)
    end = event("ensure", Phase.END, status="error", error_type=error.error_type, message=error.line)
    output.json_text(end.json_line)


def say_error(error: "RayprepError") -> None:
    """The error's one line, on standard error."""
    say(error.error_type.value if error.error_type else type(error).__name__, error.line, error.exit_code)


def say(kind: str, text: str, code: int) -> int:
    """One line on standard error. Returns `code`."""
    from rayprep.cli import output

    output.error(kind, text)
    return code


def set_ray_environment(values: dict[str, str]) -> None:
    """The one place where this process's environment is written, before Ray starts and inherits it.

    Ray's processes get no secret but Ray's own.
    """
    from rayprep.host.environment import for_ray

    kept = for_ray(os.environ, values)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(values)
