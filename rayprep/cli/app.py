"""Every command, in the order of `--help`, by the first line of its help.

A command is the function `command` of the module that bears its name, which is imported when the command runs: `--help`
imports none of them.
"""

from typing import Annotated

import typer

import rayprep
from rayprep.cli import output
from rayprep.cli.commands import app_of, declare

COMMANDS = {
    "ensure": "Build what is missing, prove it, and write prep_result.json.",
    "verify": "Start a server against the prepared caches, and prove that it compiles nothing. Exit 14 where it does.",
    "explain": "For each stage, why it is valid or not, and what would be built.",
    "inspect": "Show what lies in each cache, and whether this host can use it.",
    "snapshot": "Take the start-up snapshot, and merge it into a manifest or print it.",
    "manifest": "Write a container run's manifest and the pointer to it, or change the one that it has.",
    "env": "Print the environment that a server needs to use these caches.",
    "doctor": "Say what this host has and lacks, and what to do about it.",
    "reset": "Remove cache entries, whole ones only; an entry must fit every filter given, and without one all go.",
    "pack": "Pack finished stages' caches into one archive, for an image or another host of the same kind.",
    "unpack": "Take in an archive that `pack` made. Every file is proved before any is moved.",
    "schema": "Print the JSON Schema of a file that rayprep writes.",
    "status": "Show what the hosts of a cluster's runs are at. Exit 3 where no run goes on.",
    "report": "Write one HTML page of a run: failures, timeline, what was built and shipped, and each host.",
}

app = app_of("rayprep", "Builds and proves SGLang's kernel caches before a benchmark campaign starts.")
declare(app, COMMANDS)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Builds and proves SGLang's kernel caches before a benchmark campaign starts."""
    if version:
        output.line(f"rayprep {rayprep.__version__}")
        raise typer.Exit
