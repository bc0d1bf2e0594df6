"""What a run has said until now, read from its session log."""

import json
from pathlib import Path
from typing import Any

_MARK = "OPTIMIZE_JSON "


def events_in(log: Path) -> list[dict[str, Any]]:
    """A line that is just being written is not there yet."""
    whole, _, _ = log.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line.removeprefix(_MARK)) for line in whole.splitlines() if line.startswith(_MARK)]
