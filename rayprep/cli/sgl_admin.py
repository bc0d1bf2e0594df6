"""`sgl-admin caches inspect|ensure`: the same commands under the names that the contract gives them."""

import typer

from rayprep.cli import app as rayprep_app
from rayprep.cli.main import run

app = typer.Typer(
    name="sgl-admin",
    help="SGLang kernel caches.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
caches = typer.Typer(no_args_is_help=True, help="Inspect the caches, or ensure that they are valid.")
caches.command("inspect")(rayprep_app.inspect)
caches.command("ensure")(rayprep_app.ensure)
app.add_typer(caches, name="caches")


def main() -> int:
    """`sgl-admin`."""
    return run(app)
