"""Modules as flashinfer/jit/core.py and cpp_ext.py make them. FLASHINFER_NVCC is called with a source and an object."""

import logging
import os
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

_ARCH = os.environ["FLASHINFER_CUDA_ARCH_LIST"].replace(".", "")
WORKSPACE = Path(os.environ["FLASHINFER_WORKSPACE_BASE"]) / ".cache" / "flashinfer" / "0.6.14" / _ARCH
JIT = WORKSPACE / "cached_ops"
CSRC = Path(__file__).parents[1] / "csrc"
JIT.mkdir(parents=True, exist_ok=True)
(WORKSPACE / "flashinfer_jit.log").touch()
if "FAKE_LOCK_LOG" in os.environ:
    logging.basicConfig(filename=os.environ["FAKE_LOCK_LOG"], level=logging.DEBUG)


def write_if_different(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@dataclass
class JitSpec:
    name: str
    source: Path

    @property
    def is_aot(self) -> bool:
        return self.name == os.environ.get("FAKE_AOT")

    @property
    def build_dir(self) -> Path:
        return JIT / self.name

    @property
    def jit_library_path(self) -> Path:
        return self.build_dir / f"{self.name}.so"

    def build(self, verbose: bool, need_lock: bool = False) -> None:
        assert not verbose
        (JIT / "tmp").mkdir(exist_ok=True)
        lock = FileLock(JIT / "tmp" / f"{self.name}.lock", thread_local=False)
        with lock if need_lock else nullcontext():
            write_if_different(self.build_dir / "build.ninja", self._ninja())
            self._run_ninja(self.build_dir.resolve())

    def _ninja(self) -> str:
        out = self.build_dir.resolve()
        return (
            f"nvcc = {os.environ.get('FLASHINFER_NVCC', 'cp')}\n"
            "rule cuda_compile\n  command = $nvcc $in $out\n"
            "rule link\n  command = cp $in $out\n"
            f"build {out}/kernel.cuda.o: cuda_compile {self.source.resolve()}\n"
            f"build {out}/{self.name}.so: link {out}/kernel.cuda.o\n"
            f"default {out}/{self.name}.so\n"
        )

    def _run_ninja(self, folder: Path) -> None:
        command = ["ninja", "-v", "-C", str(folder), "-f", str(folder / "build.ninja")]
        try:
            subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, text=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError("Ninja build failed. Ninja output:\n" + error.output) from error


def gen_batch_prefill_module(backend: str, dtype_q: torch.dtype, dtype_kv: torch.dtype, *rest: object) -> JitSpec:
    return generated(batch_prefill_name(dtype_q, dtype_kv) + ("_sm90" if backend == "fa3" else ""))


def batch_prefill_name(dtype_q: torch.dtype, dtype_kv: torch.dtype) -> str:
    return f"batch_prefill_dtype_q_{dtype_q.name}_dtype_kv_{dtype_kv.name}"


def generated(name: str) -> JitSpec:
    source = WORKSPACE / "generated" / name / "kernel.cu"
    write_if_different(source, f"// {name}\n")
    return JitSpec(name, source)
