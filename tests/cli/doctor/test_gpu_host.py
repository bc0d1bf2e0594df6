"""`rayprep doctor` on a host with GPUs, as a stand-in for the driver's library has it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.doctor.runs import TESTED, TIMEOUT_S, distributions, executable, inside, toolkit
from tests.conftest import Roots
from tests.needs import needs_namespaces, needs_tool

NVML = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static const char *names[8]; static int count;
int nvmlInitWithFlags(unsigned f) {
  char *text = strdup(getenv("FAKE_GPUS")); count = 0;
  for (char *name = strtok(text, ","); name; name = strtok(0, ",")) names[count++] = name;
  return getenv("FAKE_NVML_ERROR") ? atoi(getenv("FAKE_NVML_ERROR")) : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { return "made-up error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)&names[i]; return 0; }
int nvmlSystemGetDriverVersion(char *v, unsigned n) { snprintf(v, n, "580.159.04"); return 0; }
int nvmlSystemGetCudaDriverVersion(int *v) { *v = 13000; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 9; *b = 0; return 0; }
int nvmlDeviceGetNumGpuCores(void *h, unsigned *n) { *n = 132 * 128; return 0; }
int nvmlDeviceGetUUID(void *h, char *v, unsigned n) { snprintf(v, n, "GPU-%p", h); return 0; }
int nvmlDeviceGetName(void *h, char *v, unsigned n) { snprintf(v, n, "%s", *(char **)h); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long m[3]) {
  m[0] = 141ull << 30; m[2] = 1ull << 29; m[1] = m[0] - m[2]; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, void *p) { *n = 0; return 0; }
int nvmlDeviceGetTotalEccErrors(void *h, int t, int c, unsigned long long *n) { return 3; }
"""
"""A stand-in for the driver's library: the GPUs that FAKE_GPUS names, idle, without ECC."""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with a libnvidia-ml.so.1 of our own."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    build = ["gcc", "-shared", "-fPIC", "-w", "nvml.c", "-o", "libnvidia-ml.so.1"]
    subprocess.run(build, cwd=folder, check=True, timeout=TIMEOUT_S)
    return folder


DRIVER = """
mkdir "$base/dev"; mount -t tmpfs tmpfs "$base/dev"; mkdir "$base/dev/shm"; mount --bind /dev/shm "$base/dev/shm"
for each in null zero random urandom tty; do touch "$base/dev/$each"; mount --bind "/dev/$each" "$base/dev/$each"; done
touch "$base/dev/nvidiactl"; mount --rbind "$base/dev" /dev
"""
"""A /dev of the test's own, with the device that tells of a driver."""


@pytest.mark.namespaces
@needs_namespaces()
@needs_tool("gcc")
class TestGpuHost:
    @pytest.fixture
    def host(self, roots: Roots, nvml: Path) -> Roots:
        """A host of two H200, with the tested set and a toolkit that agrees with itself."""
        site = roots.base / "site"
        (site / "torch").mkdir(parents=True)
        (site / "torch" / "__init__.py").touch()
        (site / "torch" / "version.py").write_text("cuda: str = '13.0'\n")
        ninja = executable(roots.base / "bin" / "ninja", "#!/bin/sh\necho 1.13.0\n")
        roots.extra_env = {
            "LD_LIBRARY_PATH": str(nvml),
            "FAKE_GPUS": "NVIDIA H200,NVIDIA H200",
            "PYTHONPATH": distributions(site, TESTED),
            "CUDA_HOME": toolkit(roots.base / "cuda", "13.0", 13000),
            "PATH": f"{ninja.parent}:{os.environ['PATH']}",
        }
        return roots

    def test_a_good_one(self, host: Roots) -> None:
        checks = inside(host, DRIVER)
        assert checks["GPUs"]["message"] == "2 x NVIDIA H200 (sm_90, 132 SMs), 141.0 GiB each"
        assert checks["NVIDIA driver"]["message"] == "580.159.04, serves CUDA 13.0; torch is built for 13.0"
        assert checks["GPU use"]["message"] == "idle"
        assert checks["GPU memory"]["message"] == "ECC errors are not counted here"
        assert checks["locked memory"]["state"] == "ok"
        for check in ("torch", "sglang", "nvcc", "ninja", "GPUs"):
            assert checks[check]["state"] == "ok", checks[check]

    def test_two_kinds_of_gpu(self, host: Roots) -> None:
        host.extra_env["FAKE_GPUS"] = "NVIDIA H200,NVIDIA H100 80GB HBM3"
        finding = inside(host, DRIVER)["GPUs"]
        assert finding["state"] == "fail"
        assert "1 x NVIDIA H100 80GB HBM3" in finding["message"]

    def test_a_driver_that_fails_is_no_absence(self, host: Roots) -> None:
        host.extra_env["FAKE_NVML_ERROR"] = "999"
        finding = inside(host, DRIVER)["GPUs"]
        assert (finding["state"], finding["message"]) == ("fail", "cannot be read: NVML: Unknown Error")

    def test_what_a_gpu_host_lacks_fails_there(self, host: Roots) -> None:
        del host.extra_env["PYTHONPATH"]
        host.extra_env["CUDA_HOME"] = str(host.base / "nothing")
        host.extra_env["PATH"] = str(_without(host.base / "few", "nvcc", "ninja"))
        checks = inside(host, DRIVER)
        assert checks["sglang"]["state"] == "fail"
        assert checks["ninja"]["state"] == "fail"
        if not Path("/usr/local/cuda/bin/nvcc").exists():
            assert checks["nvcc"]["state"] == "fail"


def _without(folder: Path, *names: str) -> Path:
    """A folder for PATH with all programs of the real one but these."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if program.name not in names and os.access(program, os.X_OK):
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return folder
