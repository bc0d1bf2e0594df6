"""The entry point of `rayprep`."""

from rayprep.cli.app import app
from rayprep.cli.process import run


def main() -> int:
    return run(app)
