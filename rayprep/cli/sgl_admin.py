"""`sgl-admin caches inspect|ensure`: the same commands under the names that the contract gives them."""

import typer

from rayprep.cli.commands_look import inspect
from rayprep.cli.commands_request import ensure
from rayprep.cli.main import run
from rayprep.cli.usage import Commands

app = typer.Typer(
    name="sgl-admin",
    cls=Commands,
    help="SGLang kernel caches.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
caches = typer.Typer(no_args_is_help=True, help="Inspect the caches, or ensure that they are valid.")
caches.command("inspect")(inspect)
caches.command("ensure")(ensure)
app.add_typer(caches, name="caches")


def main() -> int:
    """`sgl-admin`."""
    return run(app)
