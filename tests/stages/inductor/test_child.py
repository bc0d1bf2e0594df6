"""The child that compiles the decode step: what it notices, and real processes of it."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
import torch._functorch._aot_autograd.autograd_cache
import torch._inductor.codecache

from rayprep.base.errors import ErrorType
from rayprep.host.environment import server_cache_env
from rayprep.host.layout import Layout
from rayprep.model.stages import StageName
from rayprep.stages.child.lines import FailLine, StepLine
from rayprep.stages.inductor.child import OpenedFiles, SwallowedErrors, largest_difference
from rayprep.stages.inductor.protocol import CHILD_LINE, DecodeRequest, GraphsLine, Mismatch, unit_name
from rayprep.store.completions import read_completions
from rayprep.store.package.manifest import listed_by
from tests.conftest import QUICK_COMPILER, Built
from tests.stages.inductor.decoding import DENSE, SMALL, request

pytestmark = pytest.mark.torch

TOOLCHAIN = ErrorType.TOOLCHAIN_MISMATCH


def test_a_difference_beyond_the_tolerance_and_a_nan_are_mismatches() -> None:
    expected = torch.ones(4, 100)
    nearly = expected.clone()
    nearly[0, 0] += 0.01
    assert largest_difference([nearly], [expected], 1e-3) == pytest.approx(0.01, rel=1e-4)
    for wrong in (expected * 1.01, torch.full_like(expected, math.nan)):
        with pytest.raises(Mismatch):
            largest_difference([expected, wrong], [expected, expected], 1e-3)


def test_opened_files_are_those_below_the_root_and_their_twins(tmp_path: Path) -> None:
    root = tmp_path / "cache dir"
    names = ["ab/cabc.main.so", "ab/cabc.main.cpp", "ab/cother.main.so", "fx/entry", "de/cdef.so", "locks/cabc.lock"]
    for name in (*names, "fx/.1.2.tmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "fx/link").symlink_to(tmp_path)
    opened = OpenedFiles(root)
    opened("import", ("cabc.kernel", str(root / "ab/cabc.main.so"), None, None, None))
    opened("open", (os.fsencode(root / "fx/entry"), "rb", 0))
    opened("open", (str(root / "fx/gone"), "rb", 0))
    opened("open", (str(root / "fx/.1.2.tmp"), "wb", 0))
    opened("open", (str(root / "locks/cabc.lock"), "wb", 0))
    opened("open", (3, "rb", 0))
    opened("open", (str(tmp_path), "rb", 0))
    opened("subprocess.Popen", ("python", ["python", "-c", f'\nLoadLibrary("{root}/de/cdef.so")\n'], None, None))
    assert opened.used() == ("ab/cabc.main.cpp", "ab/cabc.main.so", "de/cdef.so", "fx/entry")


def test_a_cache_entry_that_torch_could_not_write_is_noticed() -> None:
    swallowed = SwallowedErrors()
    full = OSError(28, "No space left on device")
    logger = torch._inductor.codecache.log
    try:
        raise full
    except OSError:
        logger.warning("fx graph unable to write to cache", exc_info=True)
    torch._functorch._aot_autograd.autograd_cache.log.warning("unable to serialize: %s", full)
    logger.warning("nothing of the kind: %s", ValueError("x"))
    assert swallowed.errors == [full, full]


def start(sent: DecodeRequest, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    file = folder / "request.json"
    file.write_text(sent.model_dump_json())
    child_env = {**os.environ, "CXX": str(QUICK_COMPILER), "TORCHINDUCTOR_CACHE_DIR": sent.cache_dir, **env}
    command = [sys.executable, "-m", "rayprep.stages.inductor.child", str(file)]
    return subprocess.run(command, env=child_env, capture_output=True, text=True, timeout=300, check=False)


def talk(sent: DecodeRequest, folder: Path, **env: str) -> GraphsLine:
    ended = start(sent, folder, **env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *steps, done = map(CHILD_LINE.validate_json, ended.stdout.splitlines())
    assert isinstance(done, GraphsLine)
    counts = [(step.n, step.m) for step in steps if isinstance(step, StepLine)]
    assert counts == [(n, len(done.graphs)) for n in range(1, len(done.graphs) + 1)]
    return done


def files(cache: Path) -> set[str]:
    found = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(cache).as_posix() for path in found}


@pytest.mark.slow  # by default a whole run does, in cli/test_ensure
def test_a_second_process_finds_the_graph_in_what_the_completion_lists(built: Built, tmp_path: Path) -> None:
    """Of a copy of just that, at another path, and compiles again one library that is missing, and nothing else."""
    layout = Layout(built.roots.profiles, built.roots.telemetry)
    (completion,), _ = read_completions(layout, StageName.INDUCTOR)
    listed = {path.removeprefix("torchinductor/") for path in listed_by([completion])}
    copy, home = tmp_path / "another" / "place", tmp_path / "home"
    home.mkdir()
    for name in listed:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built.roots.profiles / "torchinductor" / name, copy / name)
    sent = request("check", copy, DENSE).model_copy(update={"max_seq_len": 512})
    # Of the instruction sets, only what the CPU's flags leave open is tried by compiling: it saves three compiles.
    ours = server_cache_env(layout)
    del ours["TORCHINDUCTOR_CACHE_DIR"]
    outside = {**ours, "HOME": str(home), "TMPDIR": str(home), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    done = talk(sent, tmp_path, **outside)
    assert [(graph.unit, graph.cache_hit) for graph in done.graphs] == [(unit_name(DENSE, 1, 1, 512, "cpu"), True)]
    assert set(done.used) == listed == files(copy)

    missing = next(copy.rglob("*.main.so"))
    missing.unlink()
    started_at = time.time()
    (moved,) = talk(sent, tmp_path, OMP_NUM_THREADS="1", **outside).graphs
    assert not moved.cache_hit
    assert files(copy) == listed
    assert [path for path in copy.rglob("*.so") if path.stat().st_mtime > started_at] == [missing]
    assert not any(home.iterdir())


def test_a_missing_compiler_and_a_bad_request_are_one_line(tmp_path: Path) -> None:
    ended = start(request("build", tmp_path / "cache"), tmp_path, CXX="/nonexistent/g++")
    (line,) = map(CHILD_LINE.validate_json, ended.stdout.splitlines())
    assert isinstance(line, FailLine)
    assert (ended.returncode, line.error_type) == (1, TOOLCHAIN)
    assert line.unit == unit_name(SMALL, 1, 1, 16, "cpu")
    assert "Traceback" in ended.stderr

    elsewhere = start(request("build", tmp_path / "cache"), tmp_path, TORCHINDUCTOR_CACHE_DIR="/elsewhere")
    assert elsewhere.returncode == 1
    assert "cache_dir" in json.loads(elsewhere.stdout)["message"]
