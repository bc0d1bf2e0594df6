"""What the tests of hosts with addresses of their own share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder for what hosts keep for themselves: not pytest's, below which no path of a socket would fit."""
    with tempfile.TemporaryDirectory(prefix="rayprep-", dir="/tmp") as folder:
        yield Path(folder)
