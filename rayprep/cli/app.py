"""Every command, in the order of `--help`.

A command's flags are in one of the `commands_` modules. What it does is in a module of its own, which is imported when
the command runs: `--help` imports none of them.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from rayprep.cli.commands_caches import pack, reset, unpack
from rayprep.cli.commands_look import doctor, env, inspect, manifest, report, schema, snapshot, status
from rayprep.cli.commands_request import ensure, explain, verify
from rayprep.cli.usage import Commands

app = typer.Typer(
    name="rayprep",
    cls=Commands,
    help="Builds and proves SGLang's kernel caches before a benchmark campaign starts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Builds and proves SGLang's kernel caches before a benchmark campaign starts."""
    if version:
        import rayprep
        from rayprep.cli import output

        output.line(f"rayprep {rayprep.__version__}")
        raise typer.Exit


COMMANDS: tuple[Callable[..., None], ...] = (
    *(ensure, verify, explain),
    *(inspect, snapshot, manifest, env, doctor),
    *(reset, pack, unpack),
    *(schema, status, report),
)
for command in COMMANDS:
    app.command()(command)
