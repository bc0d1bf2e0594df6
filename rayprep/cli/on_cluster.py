"""`--cluster` for the commands that look or clean up: the same command on every host, one table."""

import json
import os
from collections.abc import Mapping

from rayprep.base.text import printable
from rayprep.cli import output
from rayprep.cli.fleet_flags import FleetFlags, address_of
from rayprep.cli.process import set_ray_environment
from rayprep.fleet.command_answers import Everywhere
from rayprep.fleet.runtime.session import CLUSTER_ENVIRONMENT, joined_ray

TIMEOUT_S = 300.0


def run(command: str, options: Mapping[str, object], fleet: FleetFlags, *, json_output: bool) -> int:
    """Runs it everywhere and prints what each host said. Returns the exit status.

    Args:
        options: the command's own flags -> value; null, false and empty ones are left out.
    """
    spec, address = fleet.spec(), address_of(fleet.address, dict(os.environ))
    argv = [command, *_words(options), "--json"]
    set_ray_environment(CLUSTER_ENVIRONMENT)
    with joined_ray(address):
        from rayprep.fleet.run_everywhere import ask_everywhere  # with Ray, which has read its environment

        found = Everywhere(command=tuple(argv), hosts=ask_everywhere(spec, argv, TIMEOUT_S))
    if json_output:
        output.json_text(json.dumps(found.document, indent=2))
    else:
        output.lines(_table(found))
    return found.exit_code


def _words(options: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        elif value not in (None, False, ""):
            words += [flag, str(value)]
    return words


def _table(found: Everywhere) -> list[str]:
    rows = [(printable(host), ended, words) for host, ended, words in found.rows]
    width = max(len(host) for host, *_ in rows)
    return [f"{host:<{width}}  {ended:<7} {words}".rstrip() for host, ended, words in rows]
