"""Runs of `rayprep doctor`, and what they are made to find: compilers, toolkits, installed libraries."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import Roots

TIMEOUT_S = 120
TESTED = {
    "sglang": "0.5.16",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "flashinfer-python": "0.6.14",
    "sgl-deep-gemm": "0.1.4.post1",
    "sglang-kernel": "0.4.5",
    "transformers": "5.12.1",
}
NVCC = """#!/bin/sh
case "$*" in
  *--dryrun*) echo '#$ INCLUDES="-I{home}/targets/include"' >&2 ;;
  *) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
esac
"""


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The findings of a `--json` run, by check."""
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (3 if any(each["state"] == "fail" for each in report["findings"]) else 0)
    return {each["check"]: each for each in report["findings"]}


def doctor(roots: Roots, *args: str) -> dict[str, dict[str, Any]]:
    return found(roots.run("doctor", "--json", *args, timeout=TIMEOUT_S))


def inside(roots: Roots, setup: str, *args: str, unshare: str = "-rm") -> dict[str, dict[str, Any]]:
    """The doctor in namespaces of its own, after `setup`, a shell script with $base, $profiles and $telemetry."""
    script = f'set -e; base=$1; profiles=$2; telemetry=$3; shift 3; {setup}\nexec "$@"'
    command = ["unshare", *unshare.split(), "sh", "-c", script, "sh"]
    command += [str(roots.base), str(roots.profiles), str(roots.telemetry), *roots.command("doctor", "--json", *args)]
    return found(subprocess.run(command, env=roots.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False))


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def toolkit(home: Path, nvcc: str, headers: int) -> str:
    """A CUDA_HOME whose nvcc says one version and whose headers say another."""
    executable(home / "bin" / "nvcc", NVCC.format(home=home, version=nvcc))
    include = home / "targets" / "include"
    include.mkdir(parents=True)
    (include / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {headers}\n")
    return str(home)


def distributions(site: Path, versions: dict[str, str]) -> str:
    """A folder for PYTHONPATH in which these are installed, as far as their metadata goes."""
    for name, version in versions.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(site)
