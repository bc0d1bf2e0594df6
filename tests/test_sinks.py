"""All that is written goes through two modules, which let nothing through that does not print."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayprep

ROOT = Path(rayprep.__file__).parent
SINKS = {
    "report/screen.py": {"print", "Console", "Table", "Text", "Live"},
    "cli/output.py": {"print", "buffer.write"},
    # Into a stage's log, which is for a compiler's or a server's own output as well; what they name is written out.
    "host/guard.py": {"print"},
    "stages/deep_gemm/compile_jobs.py": {"print"},
    "stages/deep_gemm/child.py": {"print"},
    "stages/flashinfer/child.py": {"print"},
    "stages/moe_tune/bench.py": {"print"},
    "stages/deep_gemm/nvcc_recorder.py": {"print", "buffer.write"},  # it is the compiler, for DeepGEMM
    # Lines of JSON from a child to its stage.
    "stages/child/lines.py": {"print"},
    "stages/serve/jit_child.py": {"print"},
    "sglang/inside/inventory.py": {"print", "print_exc"},  # its trace, for the log of who asks
    # A trace that was asked for, by way of the screen.
    "fleet/attached.py": {"sys.stderr"},
    # An archive.
    "store/package/archive_file.py": {"sys.stdout"},
}
"""Who writes to a stream of the process's, or draws, and by which means."""
DRAWS = {"Console", "Table", "Text", "Live", "Panel", "Prompt", "Confirm", "Progress"}
PRINTS = {"echo", "secho", "print_exc", "print_exception"}
STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
HARMLESS = {"isatty", "flush", "encoding"}
"""What may be asked of a stream anywhere."""

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def means(tree: ast.AST) -> Iterator[str]:
    """By which means a module writes."""
    harmless = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in HARMLESS and ast.unparse(node.value) in STREAMS
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            *parents, last = ast.unparse(node.func).split(".")
            yield from DRAWS & {*parents, last}
            if (last == "print" and not parents) or last in PRINTS:
                yield last
            if parents[-1:] == ["buffer"] and last == "write":
                yield "buffer.write"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in STREAMS and id(node) not in harmless:
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "rich":
            yield from (alias.name for alias in node.names)


HANDED_ON = {
    "cli/process.py": "asks the streams not to fail over a character",
    "cli/output.py": "the sink of the commands",
    "fleet/runtime/session.py": "has Ray's own words on standard error",
    "report/host_view.py": "hands the stream to the sink",
    "report/fleet_view.py": "hands the stream to the sink",
}
"""Who may name a stream of the process's without a `print`, and why."""


@pytest.mark.parametrize("module", MODULES)
def test_only_the_sinks_write(module: str) -> None:
    found = set(means(ast.parse((ROOT / module).read_text(encoding="utf-8"))))
    if module in HANDED_ON or "print" in SINKS.get(module, ()):
        found -= STREAMS
    if module.startswith("stages/"):
        found -= {"print_exc"}  # a child's trace, for its stage's log
    assert found <= SINKS.get(module, set())


def test_every_sink_is_one() -> None:
    for module, allowed in SINKS.items():
        assert allowed <= set(means(ast.parse((ROOT / module).read_text(encoding="utf-8")))), module


CODE = (
    "print(x)",
    "sys.stdout.write(x)",
    "sys.stderr.buffer.write(x)",
    "rich.console.Console().print(x)",
    "Text.from_markup(x)",
    "typer.echo(x)",
    "json.dump(x, sys.stdout)",
    "from rich import print",
    "traceback.print_exc()",
    "Table().add_row(x)",
)


@pytest.mark.parametrize("code", CODE)
def test_it_is_seen(code: str) -> None:
    assert set(means(ast.parse(code)))
