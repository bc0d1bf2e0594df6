"""The session log of one run: human lines and `OPTIMIZE_JSON` lines, each once."""

import os
from pathlib import Path

from rayprep.base.text import printable
from rayprep.host.owned import OwnedTree
from rayprep.model.events import Event, Phase

_FOR_PEOPLE = frozenset({Phase.START, Phase.END, Phase.WARNING})
"""Phases that get a human line beside their JSON line; the others would only fill the log."""


class SessionLog:
    """Lines appended to `<telemetry>/logs/<run_id>.log`. Raises OSError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        descriptor = OwnedTree(path.parent.parent).open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        # Line buffered, so that what was said before a kill -9 is in the log.
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    def record(self, event: Event) -> None:
        if event.phase in _FOR_PEOPLE:
            self.say(event.human_line)
        self.say(event.json_line)

    def say(self, line: str) -> None:
        """Writes one line, whatever a name in it holds."""
        self._file.write(printable(line) + "\n")

    def close(self) -> None:
        self._file.close()
