"""What a host gives whoever builds on it, beside what its signature says."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Means:
    """Read once, so that what is planned by it is one moment's, and the same wherever it is asked again."""

    environ: Mapping[str, str]
    """That a build's environment is made from."""
    cpus: int
    """That this process may use."""
    ninja: bool
    """It is on PATH."""
    tuner_script: bool
    """The request names one, and it is there."""


def read_means(environ: Mapping[str, str], tuner_script: str | None) -> Means:
    """Look at this host. `tuner_script` is as the request has it, of any form."""
    return Means(
        environ=environ,
        cpus=len(os.sched_getaffinity(0)),
        ninja=shutil.which("ninja", path=environ.get("PATH")) is not None,
        # os.path asks no question that a wild name could break.
        tuner_script=tuner_script is not None and os.path.isfile(tuner_script),  # noqa: PTH113
    )
