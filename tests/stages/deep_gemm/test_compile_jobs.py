"""Recorded compiler commands, run side by side with a compiler that does as it is told."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from rayprep.host.process import Child
from rayprep.stages.deep_gemm.cache import Compilers, clear_left_over, entries, whole_entry
from rayprep.stages.deep_gemm.compile_jobs import CompileError, CompileJob, first_error, run_jobs
from tests.processes import wait_for

NVCC = str(Path(__file__).parents[2] / "fakes/nvcc")
COMPILERS = Compilers("/scratch/nvcc", NVCC)
FLAGS = ("-I/opt/include", "-O3", "--ptxas-options=--register-usage-level=10")


def jobs(base: Path, count: int) -> list[CompileJob]:
    made = []
    for number in range(count):
        source = base / f"listing/kernel.k{number}.0/kernel.cu"
        source.parent.mkdir(parents=True)
        source.write_text(f"// kernel {number}", encoding="utf-8")
        arguments = (str(source), "-cubin", "-o", str(source.with_suffix(".cubin")), *FLAGS)
        made.append(CompileJob(source.parent, arguments))
    return made


def left(cache: Path) -> list[Path]:
    return list((cache / "tmp").iterdir())


def test_every_job_becomes_a_whole_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVCC_LOG", str(tmp_path / "calls"))
    cache = tmp_path / "cache"
    done = [compiled.name for compiled in run_jobs(jobs(tmp_path, 5), COMPILERS, cache, parallel=2)]
    assert sorted(done) == [path.name for path in entries(cache)] == [f"kernel.k{n}.0" for n in range(5)]
    assert all(whole_entry(path) for path in entries(cache))
    assert (cache / "cache/kernel.k3.0/kernel.cu").read_text(encoding="utf-8") == "// kernel 3"
    assert not left(cache)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert all(call.split()[4:] == list(FLAGS) for call in calls)
    assert not any(str(tmp_path / "listing") in call for call in calls)


@pytest.mark.parametrize(
    ("fault", "error_type", "said"),
    [
        ("syntax", "compile_failed", 'kernel.cu(3): error: expected a ";"'),
        ("headers", "toolchain_mismatch", "CUDA compiler and CUDA toolkit headers are incompatible"),
        ("full", "insufficient_disk", "No space left on device"),
        ("killed", "compile_failed", "killed by SIGKILL"),
        ("nothing", "compile_failed", "wrote no kernel.cubin"),
    ],
)
def test_a_failure_names_the_kernel_and_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, error_type: str, said: str
) -> None:
    monkeypatch.setenv("FAKE_NVCC_FAULT", fault)
    with pytest.raises(CompileError, match=r"^kernel\.k0\.0: ") as caught:
        list(run_jobs(jobs(tmp_path, 1), COMPILERS, tmp_path / "cache", parallel=1))
    assert said in str(caught.value)
    assert caught.value.error_type == error_type
    assert not entries(tmp_path / "cache")
    assert not left(tmp_path / "cache")


def test_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot be run: No such file") as caught:
        list(
            run_jobs(
                jobs(tmp_path, 1), Compilers("/scratch/nvcc", str(tmp_path / "nvcc")), tmp_path / "cache", parallel=1
            )
        )
    assert caught.value.error_type == "toolchain_mismatch"


def test_after_a_failure_no_more_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVCC_FAULT", "syntax")
    monkeypatch.setenv("FAKE_NVCC_LOG", str(tmp_path / "calls"))
    with pytest.raises(CompileError):
        list(run_jobs(jobs(tmp_path, 50), COMPILERS, tmp_path / "cache", parallel=1))
    assert len((tmp_path / "calls").read_text(encoding="utf-8").splitlines()) < 10


def test_killed_in_the_middle_there_is_no_half_entry(tmp_path: Path) -> None:
    """The compiler has written half of a cubin when the process that runs it is killed hard."""
    cache, calls = tmp_path / "cache", tmp_path / "calls"
    code = (
        "import sys; from pathlib import Path; from tests.stages.deep_gemm.test_compile_jobs import COMPILERS, jobs;"
        "from rayprep.stages.deep_gemm.compile_jobs import run_jobs; base = Path(sys.argv[1]);"
        "list(run_jobs(jobs(base, 1), COMPILERS, base / 'cache', parallel=1))"
    )
    root = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root, "FAKE_NVCC_FAULT": "hang", "FAKE_NVCC_LOG": str(calls)}
    with Child([sys.executable, "-c", code, str(tmp_path)], env, tmp_path / "log") as child:
        wait_for((tmp_path / "calls.hangs").exists, "the compiler runs")
        compiling = psutil.Process(child.guard_pid).children()[0]
        compiling.send_signal(signal.SIGKILL)
        compiling.wait(30)
        status, cleanup = child.end()
    assert (status, cleanup.killed) == (137, True)
    assert not entries(cache)
    assert [path.name for path in left(cache)[0].iterdir()]  # or nothing was in the middle of anything
    clear_left_over(cache)
    assert not left(cache)


def test_the_first_error_of_an_output() -> None:
    assert first_error("warning: x\n  a.h(1):  error: y\nb.h: error: z") == "a.h(1): error: y"
    assert first_error("\nwarning: x\n") == "warning: x"
    assert first_error("") == ""
