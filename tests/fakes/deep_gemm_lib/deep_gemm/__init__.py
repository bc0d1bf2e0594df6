"""A stand-in for sgl-deep-gemm 0.1.4: it compiles, names, stores and loads kernels as csrc/jit/compiler.hpp does.

Its tiles depend on M in three steps. A product needs a layout kernel before its own. A cubin is good if it starts
with ELF. With FAKE_LAYOUT=2 it does as include/deep_jit of 0.2: another command, entries and words of failure. With
FAKE_FICKLE=process each process wants kernels of its own, with FAKE_FICKLE=place each folder that the cache really is.
"""

import hashlib
import json
import os
import subprocess
import uuid
from pathlib import Path

import torch

_loaded: set[Path] = set()
_compiler: list[str] = []


def get_mk_alignment_for_contiguous_layout() -> int:
    return 128


def fp8_gemm_nt(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor], out: object) -> None:
    (m, k), (n, _) = left[0].shape, right[0].shape
    _build("transpose_fp32", f"#include <deep_gemm/impls/smxx_layout.cuh>\n// {k}\n")
    tile = 64 if m <= 64 else 128 if m <= 1024 else 256
    place = os.path.realpath(os.environ["DG_JIT_CACHE_DIR"])
    fickle = {"process": os.getpid(), "place": place}.get(os.environ.get("FAKE_FICKLE", ""), "")
    _build("sm90_fp8_gemm_1d2d", f"#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>\n// {n} {k} {tile} {fickle}\n")


def fp8_m_grouped_gemm_nt_masked(
    left: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    out: object,
    masked_m: torch.Tensor,
    expected_m: int,
) -> None:
    assert left[0].shape[0] == right[0].shape[0] == masked_m.shape[0]
    _build("sm90_fp8_gemm_masked", f"#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>\n// {right[0].shape} masked\n")


def _start() -> tuple[str, str]:
    """The cache's folder and the compiler, read once, when first used."""
    if not _compiler:
        nvcc = os.environ["DG_JIT_NVCC_COMPILER"]
        version = _shell(f"{nvcc} --version")
        if version.returncode != 0 or "release 13.0" not in version.stdout:
            raise RuntimeError("Assertion error (compiler.hpp:1): return_code == 0")
        _compiler.extend([os.environ["DG_JIT_CACHE_DIR"], nvcc])
    return _compiler[0], _compiler[1]


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _build(name: str, code: str) -> None:
    top, nvcc = _start()
    digest = hashlib.md5(f"{name}$NVCC13.0$-O3$-I/opt/include${code}".encode()).hexdigest()
    second = os.environ.get("FAKE_LAYOUT") == "2"
    folder = Path(top) / "cache" / (f"{name}.{digest}" if second else f"kernel.{name}.{digest}")
    if folder in _loaded:
        return
    if second and (folder / ".committed").exists():
        os.utime(folder / ".committed")
    elif not (folder / "kernel.cubin").exists():
        _compile(Path(top), nvcc, code, folder, second)
    if not (folder / "kernel.cubin").read_bytes().startswith(b"\x7fELF"):
        raise RuntimeError("CUDA driver error (handle.hpp:1): 200 (CUDA_ERROR_INVALID_IMAGE)")
    _loaded.add(folder)


def _compile(top: Path, nvcc: str, code: str, folder: Path, second: bool) -> None:
    making = top / "tmp" / uuid.uuid4().hex
    making.mkdir(parents=True)
    (making / "kernel.cu").write_text(code)
    output = "--cubin --output-file" if second else "-cubin -o"
    command = f"{nvcc} {making}/kernel.cu {output} {making}/kernel.cubin -I/opt/include -O3"
    done = _shell(f"cd {making} && {command}")
    if done.returncode != 0 and second:
        raise RuntimeError(f"command failed with exit code {done.returncode}:\n{command}\n{done.stdout}")
    if done.returncode != 0:
        print("NVCC compilation failed:", done.stdout)
        raise RuntimeError('Assertion error (compiler.hpp:2): false and "NVCC compilation failed"')
    if second:
        meta = {"command": command, "compiler_info": {"path": nvcc, "version": "release 13.0"}}
        (making / "meta.json").write_text(json.dumps(meta))
        (making / ".committed").touch()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        making.rename(folder)
    except OSError:
        if not (folder / "kernel.cubin").exists():
            raise
