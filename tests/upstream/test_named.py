"""Whatever variable or flag a source of ours names has a contract."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import rayprep
from rayprep.cli.app import COMMANDS
from rayprep.cli.commands import _imported
from rayprep.sglang.releases import Since
from scripts.upstream import contracts
from scripts.upstream.checks import Flag, Holds, Named
from scripts.upstream.contracts import CONTRACTS
from scripts.upstream.contracts.variables import IN_PIECES, OURS, UNREAD

ROOT = Path(rayprep.__file__).parent
CONTRACTS_OF = sorted(Path(contracts.__file__).parent.glob("*.py"))
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]\b(?!-)")
OTHERS = {
    **dict.fromkeys(("--ulimit", "--shm-size", "--init", "--gpus", "--env-file"), "docker's and podman's"),
    **dict.fromkeys(("--force-reinstall", "--no-deps"), "pip's"),
    **dict.fromkeys(
        ("--tune", "--dtype", "--per-channel-quant", "--batch-size"), "the tuning script's of SGLang's sources"
    ),
    **dict.fromkeys(("--flag", "--name", "--hf-token"), "an example's"),
    **dict.fromkeys(("--dryrun", "--cubin", "--output-file"), "of nvcc"),
    **{"--inodes": "of df", "--memory": "of zstd"},
}
"""Flags of other programs. None of them is in a wheel that is read."""


@cache
def strings() -> Sequence[tuple[str, str]]:
    """Return every string of our sources, docstrings too, each with its file."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((path.relative_to(ROOT).as_posix(), node.value))
    return found


def named(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    return sorted({(name, file) for file, text in strings() for name in pattern.findall(text)})


def own_flags() -> Iterator[str]:
    """Yield the flags of our own commands."""
    yield from ("--help", "--version")
    for name in COMMANDS:
        command = _imported(name)
        for one in (command, *getattr(command, "commands", {}).values()):
            for parameter in one.params:
                yield from (*parameter.opts, *parameter.secondary_opts)


KNOWN = {
    row.check.name if isinstance(row.check, Named) else row.check.text
    for row in CONTRACTS
    if isinstance(row.check, Named | Holds)
}


def is_known(name: str) -> bool:
    """A name that ends in `_` is the beginning of some."""
    begins_some = name.endswith("_") and any(known.startswith(name) for known in KNOWN)
    return begins_some or name in {*KNOWN, *UNREAD, *IN_PIECES}


def test_every_variable_has_a_contract() -> None:
    unknown = {(name, file) for name, file in named(OURS) if not is_known(name)}
    assert not unknown, "a variable needs a row in scripts/upstream/contracts/variables.py"


def test_every_flag_has_a_contract() -> None:
    ours = set(own_flags())
    flags = {str(row.check).removeprefix("flag ") for row in CONTRACTS if isinstance(row.check, Flag)}
    unknown = {(name, file) for name, file in named(FLAG) if name not in ours | flags | OTHERS.keys()}
    assert not unknown, "a flag of SGLang's needs a row in scripts/upstream/contracts/flags.py"


def test_every_fact_of_a_release_has_a_contract() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (*CONTRACTS_OF, ROOT / "sglang/flashinfer_modules.py"))
    assert [name for name in Since.__members__ if f"Since.{name}" not in text] == []
