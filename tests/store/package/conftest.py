"""What the tests of archives start from: a store that is full and one that is empty."""

from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from tests.store.package.archives import FLASHINFER, GRAPHS, INDUCTOR, MODULE, at, finished


@pytest.fixture
def source(tmp_path: Path) -> Layout:
    layout = at(tmp_path / "source")
    finished(layout, INDUCTOR, GRAPHS)
    finished(layout, FLASHINFER, MODULE)
    return layout


@pytest.fixture
def target(tmp_path: Path) -> Layout:
    return at(tmp_path / "target")
