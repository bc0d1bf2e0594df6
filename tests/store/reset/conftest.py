"""What the tests of a reset start from."""

from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from tests.store.reset.caches import Caches


@pytest.fixture
def caches(tmp_path: Path) -> Caches:
    (tmp_path / "profiles").mkdir()
    return Caches(Layout(tmp_path / "profiles", tmp_path / "telemetry"))
