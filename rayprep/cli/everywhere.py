"""`--cluster` for the commands that look or clean up: the same command on every host, one table."""

import json
import os
from collections.abc import Mapping

from rayprep.cli.cluster import FleetFlags, address_of
from rayprep.cli.main import set_ray_environment
from rayprep.model.everywhere import Everywhere

TIMEOUT_S = 300.0


def run(command: str, options: Mapping[str, object], fleet: FleetFlags, *, json_output: bool) -> int:
    """Runs it everywhere and prints what each host said. Returns the exit status.

    Args:
        options: the command's own flags -> value; null, false and empty ones are left out.
    """
    from rayprep.fleet.everywhere import ask_everywhere
    from rayprep.fleet.runtime import CLUSTER_ENVIRONMENT, joined_ray

    spec, address = fleet.spec(), address_of(fleet.address, dict(os.environ))
    argv = [command, *_words(options), "--json"]
    set_ray_environment(CLUSTER_ENVIRONMENT)
    with joined_ray(address):
        found = Everywhere(command=tuple(argv), hosts=ask_everywhere(spec, argv, TIMEOUT_S))
    print(json.dumps(found.document, indent=2) if json_output else _table(found), flush=True)
    return found.exit_code


def _words(options: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        elif value not in (None, False, ""):
            words += [flag, str(value)]
    return words


def _table(found: Everywhere) -> str:
    width = max(len(host) for host in found.hosts)
    return "\n".join(f"{host:<{width}}  {ended:<7} {said}".rstrip() for host, ended, said in found.rows)
