"""The process of a command line: sets it up, runs the command, turns every failure into a line and an exit status."""

import gc
import io
import os
import sys
from typing import TextIO

import typer

from rayprep import umask_for
from rayprep.cli import output


def run(app: typer.Typer, argv: list[str] | None = None) -> int:
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
        output.error("interrupted", "interrupted")
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one line or in a trace, and in a status
        if "--debug" in arguments:
            output.trace(error)
            return 1
        from rayprep.cli.failures import fail  # with pydantic, which --help does without

        return fail(error, as_event="--json" in arguments and "ensure" in arguments[:2])
    return 0


def _never_fail_to_encode(*streams: TextIO | None) -> None:
    """Has the streams write out whatever their encoding cannot hold, in place of an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # none where it was closed
            stream.reconfigure(errors="backslashreplace")


def set_ray_environment(values: dict[str, str]) -> None:
    """The one place where this process's environment is written, before Ray starts and inherits it.

    Ray's processes get no secret but Ray's own.
    """
    from rayprep.host.environment import for_ray  # with pydantic, which --help does without

    kept = for_ray(os.environ, values)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(values)
