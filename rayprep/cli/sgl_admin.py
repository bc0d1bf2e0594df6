"""`sgl-admin caches inspect|ensure`: the same commands under the names that the contract gives them."""

from rayprep.cli.app import COMMANDS
from rayprep.cli.commands import app_of, declare
from rayprep.cli.process import run

app = app_of("sgl-admin", "SGLang kernel caches.")
caches = app_of("caches", "Inspect the caches, or ensure that they are valid.")
declare(caches, {name: COMMANDS[name] for name in ("inspect", "ensure")})
app.add_typer(caches)


def main() -> int:
    """`sgl-admin`."""
    return run(app)
