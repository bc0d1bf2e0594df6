"""Every kind of file that is fuzzed."""

from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets.fleet import fleet_targets
from tests.fuzz.targets.packages import package_targets
from tests.fuzz.targets.runs import run_targets
from tests.fuzz.targets.stages import stage_targets
from tests.fuzz.targets.store import store_targets


def all_targets(folder: Path) -> list[Target]:
    """Below `folder`, which is empty, each in a folder of its own."""
    return [
        *store_targets(folder / "store"),
        *fleet_targets(folder),
        *package_targets(folder / "packages"),
        *run_targets(folder / "runs"),
        *stage_targets(folder / "stages"),
    ]
