"""The compilers and libraries of this host, read without importing any of the heavy ones."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from rayprep.base.otlp import PACKAGES
from rayprep.host.environment import passed_on
from rayprep.host.files import read_text

_TIMEOUT_S = 20


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def can_trace() -> bool:
    """Whether what SGLang and rayprep need to send traces is installed."""
    return all(package_version(name) for name in PACKAGES)


def package_commit(name: str) -> str | None:
    """The git commit that a distribution was installed from; None for a wheel.

    Source: PEP 610, `direct_url.json`.
    """
    try:
        text = importlib.metadata.distribution(name).read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except importlib.metadata.PackageNotFoundError:
        return None
    except (ValueError, AttributeError, RecursionError):
        return None  # not of the form that PEP 610 has
    return str(commit) if commit else None


def package_folder(name: str) -> Path | None:
    """Where a top-level package would be imported from, without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch was built for; None for a CPU build or where there is no torch."""
    folder = package_folder("torch")
    if folder is None or not (folder / "version.py").is_file():
        return None
    text = read_text(folder / "version.py")
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def install_prefix() -> str:
    """The site-packages folder that the kernel libraries come from: DeepGEMM's and torch's headers lie under it."""
    folder = package_folder("deep_gemm") or package_folder("torch")
    return str(folder.parent) if folder else sysconfig.get_path("purelib")


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    """nvcc as the kernel libraries find it: CUDA_HOME, then PATH, then /usr/local/cuda."""
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else []
    for candidate in [*candidates, shutil.which("nvcc", path=environ.get("PATH")), "/usr/local/cuda/bin/nvcc"]:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return None


def nvcc_version(environ: Mapping[str, str]) -> str | None:
    """`13.0.88`, or None where there is no nvcc that runs."""
    nvcc = find_nvcc(environ)
    match = re.search(r"\bV(\d+(?:\.\d+)+)", _output([nvcc, "--version"], environ)) if nvcc else None
    return match[1] if match else None


def find_cxx(environ: Mapping[str, str]) -> list[str] | None:
    """The C++ compiler's command as torch chooses it: CXX, then g++."""
    try:
        command = shlex.split(environ.get("CXX") or "g++")
    except ValueError:
        return None  # a quote that never closes
    return command if command and shutil.which(command[0], path=environ.get("PATH")) else None


def cxx_version(environ: Mapping[str, str]) -> str | None:
    """The compiler's name and version, `g++ 12.2.0`; None where there is none that runs."""
    command = find_cxx(environ)
    if command is None:
        return None
    # Clang does not know the first; GCC answers the second with no more than its major version.
    for query in ("-dumpfullversion", "-dumpversion"):
        if match := re.search(r"\d+\.\d+(?:\.\d+)?", _output([*command, query], environ)):
            return f"{Path(command[0]).name} {match[0]}"
    return None


def _output(command: list[str], environ: Mapping[str, str]) -> str:
    """What a version query prints, or nothing where it fails: a compiler that cannot say its version is none."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=True,
            # The compiler that the environment's PATH leads to, and as it will behave there.
            env=passed_on(environ),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def cpu_isa() -> str:
    """The widest vector set of this CPU that TorchInductor knows, read from /proc/cpuinfo.

    Source: torch/_inductor/cpu_vec_isa.py, which takes avx512 only with all of f, dq, vl, bw and fma.
    """
    flags = _cpu_flags()
    if {"avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"} <= flags:
        return "avx512+amx" if "amx_tile" in flags else "avx512"
    if {"avx2", "fma"} <= flags:
        return "avx2"
    return next((name for name in ("sve2", "sve", "asimd") if name in flags), "scalar")


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def libc_version() -> str:
    name = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    return name or "-".join(platform.libc_ver()) or "unknown"


def python_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
