"""What Ray's processes inherit from a run, and a Ray that is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayprep.cli.process import set_ray_environment
from tests.conftest import ENSURE_TINY, Roots
from tests.needs import needs_torch


def test_ray_gets_its_own_token_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RAY_AUTH_TOKEN": "ray's", "HF_TOKEN": "x", "http_proxy": "u:hunter2@p:1", "https_proxy": "p:1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back
    set_ray_environment({"RAY_AUTH_MODE": "token"})
    left = {name: os.environ.get(name) for name in (*given, "RAY_AUTH_MODE")}
    assert left == {
        "RAY_AUTH_TOKEN": "ray's",
        "HF_TOKEN": None,
        "http_proxy": None,
        "https_proxy": "p:1",
        "RAY_AUTH_MODE": "token",
    }


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        pytest.param(("ensure", *ENSURE_TINY), 1, "ImportError: libfoo.so", marks=needs_torch()),
        (("status", "--address", "127.0.0.1:1"), 3, "nothing answers at 127.0.0.1:1"),
        (("status",), 2, "--address"),
    ],
)
def test_a_ray_that_cannot_be_imported_is_one_line_where_it_is_needed(
    roots: Roots, tmp_path: Path, command: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('libfoo.so: cannot open')", encoding="utf-8")
    roots.extra_env["PYTHONPATH"] = str(tmp_path)
    whole = roots.command(*command) if command[0] == "ensure" else [sys.executable, "-m", "rayprep", *command]
    done = subprocess.run(whole, env=roots.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
