"""What the tests of a warm-up server start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    assert bench.left() == [], "no test may leave a process, however it went"
