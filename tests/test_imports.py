"""Imports go downwards only and in no circle, and heavy libraries are imported by who runs them."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rayprep

ROOT = Path(rayprep.__file__).parent
FLOORS = (
    *(("base",), ("sglang",), ("model",), ("host",)),
    *(("report", "store", "server", "doctor"), ("stages",), ("node",), ("fleet",), ("cli",)),
)
"""From the ground up: a room imports from its own folder and from the floors below."""
PURE = ("base", "sglang", "model")
HEAVY = {"torch", "ray", "triton", "sglang", "flashinfer", "deep_gemm", "transformers", "numpy", "prometheus_client"}
IN_CHILDREN = {
    "rayprep.sglang.inside.fused_moe",
    "rayprep.sglang.inside.moe_layer",
    "rayprep.stages.moe_tune.bench",
    "rayprep.stages.moe_tune.timing",
    "rayprep.stages.inductor.decode_step",
    "rayprep.stages.inductor.child",
}
"""Modules that only ever run in a child process of their own, which imports what it is there for."""
WITHOUT_RAY = {"rayprep.fleet.runtime.session"}
"""Makes the environment that Ray reads as it is imported."""
LATE = {
    ("rayprep.cli.output", "rayprep.base.records"),  # --help does without pydantic
    ("rayprep.cli.process", "rayprep.cli.failures"),
    ("rayprep.cli.process", "rayprep.host.environment"),
    ("rayprep.cli.status", "rayprep.fleet.actors"),  # with Ray, once its environment is made
    ("rayprep.cli.on_cluster", "rayprep.fleet.run_everywhere"),
    ("rayprep.fleet.attached", "rayprep.fleet.worker"),  # with Ray, whose failure to be imported the owner is told
    ("rayprep.stages.inductor.child", "rayprep.stages.inductor.decode_step"),  # with torch, once its threads are set
    ("rayprep.stages.moe_tune.process_bench", "rayprep.stages.moe_tune.bench"),  # with SGLang, in a child of the child
}
"""Who imports what of ours within a function, and why it has to."""


@cache
def sources() -> Mapping[str, ast.Module]:
    """Every module of ours, by its name."""
    return {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(sources())


def imported(module: str) -> Iterator[tuple[str, bool]]:
    """The modules that one imports, within functions too, each with whether it does so at the top."""
    tree = sources()[module]
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((part if part in sources() else node.module, top) for part in parts)


def of_ours(module: str) -> dict[str, bool]:
    return {name: top for name, top in imported(module) if name in sources() and name != module}


def room(module: str) -> str:
    return f"{module}..".split(".")[1]


def height(module: str) -> int:
    """The floor of a module; the client stands where the store does, and the package itself under all."""
    names = {name: height for height, floor in enumerate(FLOORS) for name in floor}
    return {**names, "": -1, "client": names["store"], "__main__": len(FLOORS)}[room(module)]


def is_inside(module: str) -> bool:
    """It runs where SGLang is imported."""
    return module.startswith("rayprep.sglang.inside.")


def libraries(module: str, *, at_the_top: bool) -> set[str]:
    return {name.partition(".")[0] for name, top in imported(module) if top or not at_the_top}


def test_every_folder_is_on_a_floor() -> None:
    assert {room(module) for module in MODULES} - {"", "client", "__main__"} == {name for row in FLOORS for name in row}


@pytest.mark.parametrize("module", MODULES)
def test_downwards_only(module: str) -> None:
    others = {name for name in of_ours(module) if room(name) != room(module)}
    assert {name for name in others if height(name) >= height(module)} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name not in IN_CHILDREN])
def test_what_asks_sglang_itself_runs_in_children_alone(module: str) -> None:
    assert not any(is_inside(name) for name in of_ours(module))


def test_no_circle() -> None:
    try:
        TopologicalSorter({module: of_ours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_what_is_ours_is_imported_at_the_top() -> None:
    late = {(module, name) for module in MODULES for name, top in of_ours(module).items() if not top}
    assert late == LATE


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_by_who_runs_them(module: str) -> None:
    allowed = {"ray"} if room(module) == "fleet" and module not in WITHOUT_RAY else set()
    if module not in IN_CHILDREN:
        assert libraries(module, at_the_top=True) & HEAVY <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_only_the_fleet_knows_ray(module: str) -> None:
    late = "ray" in libraries(module, at_the_top=False) - libraries(module, at_the_top=True)
    assert not late or module in WITHOUT_RAY
    assert room(module) == "fleet" or "ray" not in libraries(module, at_the_top=False)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in PURE and not is_inside(name)])
def test_what_is_pure_imports_stdlib_and_pydantic_only(module: str) -> None:
    foreign = libraries(module, at_the_top=False) - set(sys.stdlib_module_names)
    assert foreign <= {"pydantic", "pydantic_core", "rayprep"}


@pytest.mark.parametrize("module", ["rayprep.cli.ensure", "rayprep.cli.ensure_cluster", "rayprep.cli.status"])
def test_a_command_starts_without_ray(module: str) -> None:
    """Ray takes half a second to import, and reads the environment that the command makes for it."""
    code = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
