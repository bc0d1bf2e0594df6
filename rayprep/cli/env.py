"""`rayprep env`: the environment of a server that is to use these caches."""

import os
import shlex
from typing import Annotated

import typer

from rayprep.cli import output
from rayprep.cli.options import Debug, ProfilesRoot
from rayprep.host.environment import server_cache_env
from rayprep.host.layout import choose_roots
from rayprep.stages.moe_tune.files import warn_of_hidden


def command(
    profiles_root: ProfilesRoot = None,
    env_file: Annotated[bool, typer.Option("--env-file", help="As a container's env file, not for eval.")] = False,
    debug: Debug = False,
) -> None:
    """Print the environment that a server needs to use these caches."""
    layout = choose_roots(dict(os.environ), profiles_root)
    if warning := warn_of_hidden(layout):
        output.warn(f"{warning} (run `rayprep ensure`)")
    for name, value in server_cache_env(layout).items():
        output.for_programs(f"{name}={value}" if env_file else f"export {name}={shlex.quote(value)}")
