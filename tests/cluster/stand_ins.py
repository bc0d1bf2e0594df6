"""A stand-in for Ray: notes how it was called, and leaves a process behind."""

import shutil
from pathlib import Path

_RAY = r"""#!/bin/bash
echo "$@" >>"$NOTES/arguments"
env >"$NOTES/environment"
raylet 60 >/dev/null 2>&1 &
until [ "$(<"/proc/$!/comm")" = raylet ]; do sleep 0.01; done
[ -z "$FAILS" ] || { rm "$FAILS" 2>/dev/null && exit 1; }
exit 0
"""
"""Fails once where a file is that $FAILS names."""


def write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def stand_in_for_ray(folder: Path) -> None:
    """`ray` and its `raylet`, which needs NOTES, a folder, in its environment."""
    write_program(folder / "ray", _RAY)
    shutil.copy("/bin/sleep", folder / "raylet")
