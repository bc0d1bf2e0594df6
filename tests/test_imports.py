"""Imports go downwards only, and heavy libraries are imported by who runs them."""

import ast
from pathlib import Path

import pytest

import rayprep

ROOT = Path(rayprep.__file__).parent
FLOORS = (
    *("base", "sglang", "model", "host"),
    *(("report", "store", "server", "doctor"), "stages", "node", "fleet", "cli"),
)
"""From the ground up: a room imports from its own folder and from the floors below."""
MAY_IMPORT = {
    room: {room} | {name for below in FLOORS[:height] for name in ((below,) if isinstance(below, str) else below)}
    for height, floor in enumerate(FLOORS)
    for room in ((floor,) if isinstance(floor, str) else floor)
}
HEAVY = {"torch", "ray", "triton", "sglang", "flashinfer", "deep_gemm", "transformers", "numpy", "prometheus_client"}
IN_CHILDREN = {
    "stages/moe_tune/bench.py",
    "stages/moe_tune/layer.py",
    "stages/moe_tune/timing.py",
    "stages/inductor/decode_step.py",
    "stages/inductor/child.py",
}
"""Modules that only ever run in a child process of their own."""

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path: Path, *, module_level: bool) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    nodes = tree.body if module_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_folder_has_a_rule() -> None:
    folders = {path.parts[0] for path in MODULES if len(path.parts) > 1}
    assert folders - {"configs"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", [path for path in MODULES if len(path.parts) > 1], ids=str)
def test_downwards_only(path: Path) -> None:
    allowed = MAY_IMPORT[path.parts[0]]
    ours = {name for name in imports(path, module_level=False) if name.startswith("rayprep.")}
    assert {name for name in ours if name.split(".")[1] not in allowed} == set()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_heavy_at_module_level(path: Path) -> None:
    if path.as_posix() not in IN_CHILDREN:
        assert {name.split(".")[0] for name in imports(path, module_level=True)} & HEAVY == set()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_fleet_knows_ray(path: Path) -> None:
    if path.parts[0] != "fleet":
        assert "ray" not in {name.split(".")[0] for name in imports(path, module_level=False)}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] in ("base", "sglang", "model")], ids=str)
def test_models_import_stdlib_and_pydantic_only(path: Path) -> None:
    import sys

    foreign = {name.split(".")[0] for name in imports(path, module_level=False)} - set(sys.stdlib_module_names)
    assert foreign <= {"pydantic", "pydantic_core", "rayprep"}
