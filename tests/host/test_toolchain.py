"""Compilers and libraries as they really answer, and compilers that answer oddly."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayprep.host import toolchain
from tests.needs import needs_tool

IMPORTS_NOTHING_HEAVY = """
import sys
from rayprep.host import toolchain
from rayprep.host.gpu import read_gpus
from rayprep.host.layout import choose_roots
from rayprep.host.this_host import read_signature
from rayprep.model.spec import DeviceChoice
import os
read_signature(choose_roots({}, "/p", "/t"), os.environ, DeviceChoice.CPU, read_gpus())
print(sorted({"torch", "triton", "ray", "numpy", "sglang", "flashinfer", "deep_gemm"} & set(sys.modules)))
"""


def compiler(folder: Path, name: str, script: str) -> Path:
    """A program that answers as a compiler would."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def env(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{folder}:/usr/bin:/bin", **more}


def test_reading_a_host_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS_NOTHING_HEAVY], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@needs_tool("g++")
def test_the_real_compiler_is_read_as_it_reads_itself() -> None:
    said = subprocess.run(["g++", "-dumpfullversion"], check=True, capture_output=True, text=True).stdout.strip()
    environ = {name: value for name, value in os.environ.items() if name != "CXX"}
    assert toolchain.cxx_version(environ) == f"g++ {said}"
    assert toolchain.cxx_version({**environ, "CXX": "g++ -O2 '-DX=a b'"}) == f"g++ {said}"


def test_a_compiler_that_knows_only_the_other_query(tmp_path: Path) -> None:
    """As clang does, which takes -dumpfullversion for a wish to compile nothing."""
    script = 'test "$1" = -dumpversion && echo 18.1.3 || { echo "error: no input files" >&2; exit 1; }'
    compiler(tmp_path, "clang++", script)
    assert toolchain.cxx_version(env(tmp_path, CXX="clang++")) == "clang++ 18.1.3"


def test_the_environments_path_leads_to_the_compiler(tmp_path: Path) -> None:
    compiler(tmp_path, "g++", "echo 99.1.2")
    assert toolchain.cxx_version(env(tmp_path)) == "g++ 99.1.2"


def test_the_compiler_sees_the_environment_that_it_will_run_in(tmp_path: Path) -> None:
    compiler(tmp_path, "g++", 'echo "$WHICH"')
    assert toolchain.cxx_version(env(tmp_path, WHICH="1.2.3")) == "g++ 1.2.3"


@pytest.mark.parametrize(
    ("script", "cxx"),
    [
        ("exit 1", "mine"),
        ("echo no version", "mine"),
        ("kill -9 $$", "mine"),
        ("printf '\\377\\376'", "mine"),
        ("echo 1.2.3", "mine 'never closed"),
        ("echo 1.2.3", "not-there"),
        ("echo 1.2.3", "'' mine"),
    ],
)
def test_a_compiler_that_cannot_say_its_version_is_none(tmp_path: Path, script: str, cxx: str) -> None:
    compiler(tmp_path, "mine", script)
    assert toolchain.cxx_version(env(tmp_path, CXX=cxx)) is None


def test_a_file_that_may_not_be_run_is_no_compiler(tmp_path: Path) -> None:
    compiler(tmp_path, "mine", "echo 1.2.3").chmod(0o644)
    assert toolchain.find_cxx(env(tmp_path, CXX="mine")) is None


NVCC = "echo 'nvcc: NVIDIA (R) Cuda compiler driver'; echo 'Cuda compilation tools, release 13.0, V13.0.88'"


def test_nvcc_is_cuda_homes_before_the_paths(tmp_path: Path) -> None:
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    on_path = compiler(tmp_path, "nvcc", "echo V12.4.1")
    assert toolchain.find_nvcc(env(tmp_path)) == str(on_path)
    assert toolchain.nvcc_version(env(tmp_path)) == "12.4.1"
    compiler(tmp_path / "cuda" / "bin", "nvcc", NVCC)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        assert toolchain.nvcc_version(env(tmp_path, **{variable: str(tmp_path / "cuda")})) == "13.0.88"
    assert toolchain.nvcc_version(env(tmp_path, CUDA_HOME="/not/there")) == "12.4.1"


def test_an_nvcc_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    compiler(tmp_path, "nvcc", "exit 127")
    assert toolchain.nvcc_version(env(tmp_path)) is None


def install(folder: Path, name: str, direct_url: str | bytes | None) -> None:
    """A distribution as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n", encoding="utf-8")
    if direct_url is not None:
        data = direct_url.encode() if isinstance(direct_url, str) else direct_url
        (info / "direct_url.json").write_bytes(data)


@pytest.mark.parametrize(
    ("direct_url", "commit"),
    [
        (None, None),
        ("", None),
        ('{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "abc1234"}}', "abc1234"),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', None),
        ('{"vcs_info": {}}', None),
        ('{"vcs_info": null}', None),
        ("{", None),
        ("[]", None),
        ("[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_the_commit_of_an_installation_from_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_url: str | bytes | None, commit: str | None
) -> None:
    install(tmp_path, "rayprep-test-package", direct_url)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert toolchain.package_version("rayprep-test-package") == "1.2.3"
    assert toolchain.package_commit("rayprep-test-package") == commit


def test_what_is_not_installed_has_nothing() -> None:
    assert toolchain.package_version("rayprep-never-installed") is None
    assert toolchain.package_commit("rayprep-never-installed") is None
    assert toolchain.package_folder("rayprep_never_installed") is None
    assert toolchain.package_version("pydantic") == importlib.metadata.version("pydantic")


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("from typing import Optional\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0"),
        ('cuda = "12.8"\n', "12.8"),
        ("cuda: Optional[str] = None\n", None),
        ("__version__ = '2.11.0+cu130'\n", None),
        ("", None),
    ],
)
def test_torchs_cuda_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cuda: str | None
) -> None:
    if "torch" in sys.modules:
        monkeypatch.delitem(sys.modules, "torch")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('never imported')", encoding="utf-8")
    (tmp_path / "torch" / "version.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert toolchain.torch_cuda_version() == cuda
    assert toolchain.install_prefix() == str(tmp_path)


def test_this_host_is_read() -> None:
    assert toolchain.python_minor() == ".".join(platform.python_version_tuple()[:2])
    assert re.fullmatch(r"glibc 2\.\d+|musl.*|\S+", toolchain.libc_version())
    assert toolchain.cpu_isa() in {"avx512", "avx512+amx", "avx2", "sve2", "sve", "asimd", "scalar"}
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if platform.machine() == "x86_64":
        assert ("avx2" in flags) == (toolchain.cpu_isa() != "scalar")
