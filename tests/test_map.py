"""The map of the code names what is there."""

import re
from pathlib import Path

import pytest

import rayprep

ROOT = Path(rayprep.__file__).parent
MAP = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/__init__.py"))
NAMED = sorted(set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)`", MAP)))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_its_line(room: str) -> None:
    assert f"\n| `{room}/` |" in MAP


@pytest.mark.parametrize("name", NAMED)
def test_what_the_map_names_is_there(name: str) -> None:
    within = (path.as_posix() for path in ROOT.rglob("*"))
    assert (ROOT.parent / name).exists() or any(path.endswith(f"/{name.rstrip('/')}") for path in within)


@pytest.mark.parametrize("folder", [path.parent for path in ROOT.rglob("__init__.py")], ids=lambda path: path.name)
def test_a_folder_says_what_it_holds(folder: Path) -> None:
    assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')


@pytest.mark.parametrize(
    "table", ["CACHES", "STAGES", "ANSWERS_FOR", "BY_NAME", "COMMANDS", "MEANING", "SIGNS", "FILES"]
)
def test_a_table_that_the_map_names_is_where_it_says(table: str) -> None:
    [place] = re.findall(rf"`{table}` \(`([a-z_/]+\.py)`", MAP) or ["model/stages.py"]
    assert re.search(rf"^{table}\b", (ROOT / place).read_text(encoding="utf-8"), re.MULTILINE)
