"""nvcc, and whether it and the CUDA headers beside it are of one version."""

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayprep.doctor.bounded import run_bounded
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject
from rayprep.host import toolchain
from rayprep.host.files import read_bytes
from rayprep.model.spec import DeviceChoice
from rayprep.sglang.pins import CUDA, requirement
from rayprep.sglang.releases import DEEP_JIT_NVCC, has_deep_jit, since

_HEADER = "cuda_runtime_api.h"
_DRY_RUN_S = 10.0
_PARTS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-nvvm")
_PIP_PINS = (
    f"pip install {' '.join(requirement(name, f'{CUDA}.*') for name in _PARTS)} (or point CUDA_HOME at one toolkit)"
)


@dataclass(frozen=True)
class Header:
    """One cuda_runtime_api.h."""

    path: str
    version: str | None
    """`13.0`; null where it does not say."""

    def __str__(self) -> str:
        return f"{self.version or 'of unknown version'} in {Path(self.path).parent}"


@dataclass(frozen=True)
class Nvcc:
    """What there is of CUDA to compile with."""

    path: str | None
    version: str | None
    problem: str = ""
    """Why there is a path and no version."""
    own: tuple[Header, ...] = ()
    """Where nvcc itself looks."""
    pip: tuple[Header, ...] = ()
    """In the installed nvidia/*/include folders."""
    pip_homes: tuple[str, ...] = ()
    """Installed nvidia/* folders with an nvcc of their own: each would do as CUDA_HOME."""


def judge_nvcc(nvcc: Nvcc, *, needed: bool, deep_gemm: str | None = None) -> Finding:
    """Compiler and headers must agree in major and minor version: CCCL's headers refuse any other pair.

    Args:
        deep_gemm: the installed version of sgl-deep-gemm.
    """
    check, bad = "nvcc", fail if needed else warn
    if nvcc.path is None:
        if not needed:
            return ok(check, "none, which the CPU stage does not need")
        homes = " or ".join(f"CUDA_HOME={home}" for home in nvcc.pip_homes)
        return fail(check, "none in CUDA_HOME, PATH or /usr/local/cuda", f"set {homes}" if homes else _PIP_PINS)
    if nvcc.version is None:
        why = nvcc.problem or "does not say its version"
        return bad(check, f"{nvcc.path}: {why}", "reinstall it, or point CUDA_HOME at a toolkit that works")
    if has_deep_jit(deep_gemm) and not since(nvcc.version, DEEP_JIT_NVCC):
        found = f"{nvcc.version} in {nvcc.path}"
        return bad(check, f"{found}, and DeepGEMM {deep_gemm} needs {DEEP_JIT_NVCC} or newer", _PIP_PINS)
    return _judge_headers(nvcc, ".".join(nvcc.version.split(".")[:2]), needed=needed)


def _judge_headers(nvcc: Nvcc, release: str, *, needed: bool) -> Finding:
    check, found = "nvcc", f"{nvcc.version} in {nvcc.path}"
    used = nvcc.own or nvcc.pip
    if not used:
        bad = fail if needed else warn
        return bad(check, f"{found}, without runtime headers ({_HEADER})", f"install those of CUDA {release}")
    wrong = [header for header in used if header.version != release]
    if wrong:
        return fail(check, f"{found}, but its headers are {_listed(wrong)}: no JIT compile works", _PIP_PINS)
    strays = [header for header in nvcc.pip if header.version != release]
    if strays:
        # nvcc and the headers beside it agree, so what uses only them works; some (TileLang) look at pip's first.
        remedy = f"let both be one version, or keep CUDA_HOME at the toolkit of {release}"
        return warn(check, f"{found} with headers {release}, but pip's headers are {_listed(strays)}", remedy)
    return ok(check, f"{found} with headers {_listed(used[:1])}")


def _listed(headers: Iterable[Header]) -> str:
    return ", ".join(str(header) for header in headers)


def cudart_version(header: str) -> str | None:
    """`13.0` from the text of cuda_runtime_api.h, which says 13000."""
    match = re.search(r"^\s*#\s*define\s+CUDART_VERSION\s+(\d+)", header, re.MULTILINE)
    return f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}" if match else None


def include_folders(dry_run: str) -> list[str]:
    """The folders of the INCLUDES line that `nvcc --dryrun` prints: true also behind links and wrapper scripts."""
    line = next((line for line in dry_run.splitlines() if line.startswith("#$ INCLUDES=")), "")
    return re.findall(r'"-I([^"]+)"', line)


def read_headers(folders: Iterable[str | Path]) -> tuple[Header, ...]:
    """The runtime header of each folder that has one; two names of one file count once."""
    found = {}
    for folder in folders:
        path = Path(os.path.realpath(folder)) / _HEADER
        if path.is_file():
            found[path] = Header(str(path), cudart_version(read_bytes(path).decode(errors="replace")))
    return tuple(found.values())


def _nvcc(subject: Subject) -> list[Finding]:
    if subject.device is DeviceChoice.CPU:
        return [ok("nvcc", "not looked at: --device cpu does without")]
    deep_gemm = toolchain.package_version("sgl-deep-gemm")
    return [judge_nvcc(_read_nvcc(subject.environ), needed=subject.wants_gpu, deep_gemm=deep_gemm)]


def _read_nvcc(environ: Mapping[str, str]) -> Nvcc:
    path, pip = toolchain.find_nvcc(environ), _pip_folders()
    if path is None:
        homes = tuple(str(folder) for folder in pip if os.access(folder / "bin" / "nvcc", os.X_OK))
        return Nvcc(None, None, pip_homes=homes)
    try:
        own = _own_includes(path, environ)
    except OSError as error:
        return Nvcc(path, None, problem=str(error))
    return Nvcc(
        path=path,
        version=toolchain.nvcc_version(environ),
        own=read_headers(own),
        pip=read_headers(folder / "include" for folder in pip),
    )


def _own_includes(nvcc: str, environ: Mapping[str, str]) -> list[str]:
    """What nvcc adds by itself, and the `include` beside its `bin`, which FlashInfer and torch add."""
    dry_run = run_bounded([nvcc, "--dryrun", "-x", "cu", os.devnull], environ, _DRY_RUN_S)
    return [*include_folders(dry_run.output), str(Path(nvcc).parent.parent / "include")]


def _pip_folders() -> list[Path]:
    """`nvidia/*` of every folder that pip installs to; the wheels of all NVIDIA libraries share the name."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    return [folder for place in places for folder in sorted(Path(place).glob("*")) if folder.is_dir()]


CHECKS: Checks = {"nvcc": _nvcc}
