"""A name means one thing in a room."""

import ast
from collections import defaultdict
from pathlib import Path

import rayprep

ROOT = Path(rayprep.__file__).parent


def test_no_class_is_named_twice_in_one_room() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in ROOT.rglob("*.py"):
        within = path.relative_to(ROOT)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[within.parts[0], node.name].append(within.as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
