"""`rayprep doctor` as people start it: on this host, and on hosts made worse or better around it."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Roots
from tests.needs import needs_fuse, needs_namespaces, needs_tool
from tests.processes import alive, family, wait_for

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


class TestThisHost:
    def test_every_check_answers_and_nothing_is_left_behind(self, roots: Roots) -> None:
        roots.base.joinpath("tmp").mkdir()
        roots.extra_env = {"TMPDIR": str(roots.base / "tmp")}
        checks = doctor(roots, "--device", "cpu")
        areas = ["rayprep", "Python", "torch", "sglang", "ray", "GPUs", "nvcc", "ninja", "C++ compiler"]
        areas += ["Python headers", "open files", "processes", "memory", "/dev/shm", "encoding", "clock", "init"]
        sides = [f"{root} {what}" for root in ("profiles", "telemetry") for what in ("root", "mount", "locks", "space")]
        assert {*areas, *sides, "clock sync", "profiles inodes", "telemetry inodes"} <= set(checks)
        assert all(each["remedy"] for each in checks.values() if each["state"] != "ok")
        assert checks["profiles locks"]["state"] == "ok"
        assert checks["ray"]["message"][0].isdigit()
        assert not roots.profiles.exists()
        assert not roots.telemetry.exists()
        assert list((roots.base / "tmp").iterdir()) == []
        assert list((roots.base / "home").iterdir()) == []

    def test_the_report_says_whose_it_is(self, roots: Roots) -> None:
        report = json.loads(roots.run("doctor", "--json", timeout=TIMEOUT_S).stdout)
        assert (report["schema_version"], report["device"]) == ("1", "auto")
        assert report["profiles_root"] == str(roots.profiles)
        assert report["telemetry_root"] == str(roots.telemetry)

    def test_for_people_it_is_one_aligned_line_a_finding(self, roots: Roots) -> None:
        done = roots.run("doctor", "--device", "cpu", timeout=TIMEOUT_S)
        *lines, summary = done.stdout.splitlines()
        assert {line[:6] for line in lines} <= {"ok    ", "warn  ", "fail  "}
        column = lines[0].index("0.", 6)
        assert all(line[column - 1] == " " and line[column] != " " for line in lines)
        assert all(" -> " in line for line in lines if not line.startswith("ok"))
        failed = sum(line.startswith("fail") for line in lines)
        assert summary.endswith(f"{failed} failed")
        assert done.returncode == (3 if failed else 0)

    def test_on_a_terminal_it_is_a_table_with_the_same_findings(self, roots: Roots) -> None:
        ours, theirs = pty.openpty()
        command = roots.command("doctor", "--device", "cuda")
        env = {**roots.env, "TERM": "xterm-256color", "COLUMNS": "100"}
        with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            shown = b"".join(_chunks(ours)).decode()
            status = process.wait(TIMEOUT_S)
        os.close(ours)
        assert "profiles root" in shown
        assert "Traceback" not in shown
        assert ("\x1b[1;31mfail" in shown) == (status == 3)

    def test_neither_torch_nor_ray_is_imported(self, roots: Roots) -> None:
        command = roots.command("doctor", "--json")
        command[1:1] = ["-X", "importtime"]
        done = subprocess.run(command, env=roots.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        names = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "rayprep" in names
        assert names & {"torch", "ray", "triton", "sglang", "numpy"} == set()

    def test_a_device_that_is_none_is_a_bad_request(self, roots: Roots) -> None:
        done = roots.run("doctor", "--device", "tpu", timeout=TIMEOUT_S)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "auto, cuda or cpu" in done.stderr


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # the other side is closed: how a pseudo-terminal says end of file
            return
        if not chunk:
            return
        yield chunk


class TestCompilers:
    @pytest.mark.parametrize(("headers", "state"), [(13000, "fail"), (13050, "ok")])
    def test_nvcc_and_its_headers(self, roots: Roots, headers: int, state: str) -> None:
        roots.extra_env = {"CUDA_HOME": toolkit(roots.base / "cuda", "13.5", headers)}
        finding = doctor(roots)["nvcc"]
        assert finding["state"] == state
        assert "13.5.88" in finding["message"]
        assert str(roots.base / "cuda" / "targets" / "include") in finding["message"]

    def test_pips_headers_are_found_where_nvcc_has_none(self, roots: Roots) -> None:
        home = Path(toolkit(roots.base / "cuda", "13.5", 13050))
        include = roots.base / "site" / "nvidia" / "cu13" / "include"
        include.mkdir(parents=True)
        (home / "targets" / "include" / "cuda_runtime_api.h").rename(include / "cuda_runtime_api.h")
        (include / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 13000\n")
        roots.extra_env = {"CUDA_HOME": str(home), "PYTHONPATH": str(roots.base / "site")}
        finding = doctor(roots)["nvcc"]
        assert finding["state"] == "fail"
        assert f"13.0 in {include}" in finding["message"]

    def test_cuda_is_no_matter_on_the_cpu(self, roots: Roots) -> None:
        roots.extra_env = {"CUDA_HOME": toolkit(roots.base / "cuda", "13.5", 13000)}
        assert doctor(roots, "--device", "cpu")["nvcc"]["state"] == "ok"

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("echo 'cc1plus: no such file' >&2; exit 1", "does not compile a program of three lines: cc1plus"),
            ("exit 0", "does not compile a program of three lines"),
            ('for last; do :; done; printf "#!/bin/sh\\nexit 7\\n" > "$last"; chmod +x "$last"', "ends with 7"),
            ('for last; do :; done; : > "$last"', "does not run: Permission denied"),
            ("sleep 600", "no answer within 10 s"),
        ],
        ids=["fails", "writes-nothing", "writes-nonsense", "not-executable", "hangs"],
    )
    def test_a_compiler_is_believed_only_when_its_program_runs(self, roots: Roots, script: str, words: str) -> None:
        cxx = executable(roots.base / "cxx", f"#!/bin/sh\n{script}\n")
        roots.extra_env = {"CXX": str(cxx)}
        finding = doctor(roots, "--device", "cpu")["C++ compiler"]
        assert finding["state"] == "fail"
        assert words in finding["message"]

    def test_an_interrupt_leaves_neither_a_compiler_nor_a_file(self, roots: Roots) -> None:
        (roots.base / "tmp").mkdir()
        mark = roots.base / "started"
        cxx = executable(
            roots.base / "cxx",
            f'#!/bin/sh\n: > "$TMPDIR/cc1.s"\n'
            f"sleep 600 & echo $! > {mark}.new; mv {mark}.new {mark}; while :; do : > $((n += 1)); done\n",
        )
        roots.extra_env = {"CXX": str(cxx), "TMPDIR": str(roots.base / "tmp")}
        process = roots.start("doctor", "--device", "cpu")
        wait_for(mark.exists, "the compiler runs")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert said.count("\n") <= 1
        wait_for(lambda: not alive(family(int(mark.read_text()))), "the compiler's child ends")
        assert list((roots.base / "tmp").iterdir()) == []

    def test_no_compiler(self, roots: Roots) -> None:
        roots.extra_env = {"CXX": "clang++-that-is-not-there"}
        finding = doctor(roots, "--device", "cpu")["C++ compiler"]
        assert finding["state"] == "fail"
        assert "clang++-that-is-not-there" in finding["message"]


class TestPackages:
    def test_the_deep_gemm_of_the_index_fails(self, roots: Roots) -> None:
        roots.extra_env = {"PYTHONPATH": distributions(roots.base / "site", {"deep-gemm": "1.0.0"})}
        finding = doctor(roots, "--device", "cpu")["deep-gemm"]
        assert finding["state"] == "fail"
        assert finding["message"].startswith("1.0.0 ")

    def test_an_odd_library_is_looked_at_and_named(self, roots: Roots) -> None:
        site = distributions(roots.base / "site", {**TESTED, "triton": "3.7.1"})
        roots.extra_env = {"PYTHONPATH": site}
        finding = doctor(roots, "--device", "cpu")["sglang"]
        assert (finding["state"], finding["remedy"]) == ("warn", "pip install triton==3.6.0")


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


class TestRoots:
    def test_cuda_without_a_gpu_fails_and_says_what_to_do(self, roots: Roots) -> None:
        if shutil.which("nvidia-smi"):
            pytest.skip("this host has GPUs")
        finding = doctor(roots, "--device", "cuda")["GPUs"]
        assert finding["state"] == "fail"
        assert "--device cuda" in finding["remedy"]

    def test_a_file_in_the_place_of_a_root(self, roots: Roots) -> None:
        roots.profiles.touch()
        checks = doctor(roots, "--device", "cpu")
        assert checks["profiles root"]["state"] == "fail"
        assert "Not a directory" in checks["profiles root"]["message"]
        assert checks["telemetry root"]["state"] == "ok"

    @pytest.mark.namespaces
    @needs_namespaces()
    def test_a_root_that_cannot_be_written(self, roots: Roots) -> None:
        roots.profiles.mkdir()
        finding = inside(roots, 'mount -t tmpfs -o ro tmpfs "$profiles"')["profiles root"]
        assert finding["state"] == "fail"
        assert "Read-only file system" in finding["message"]

    @pytest.mark.namespaces
    @needs_namespaces()
    def test_a_root_that_is_full(self, roots: Roots) -> None:
        roots.profiles.mkdir()
        setup = (
            'mount -t tmpfs -o size=1m tmpfs "$profiles"; head -c 2m /dev/zero > "$profiles/full" 2>/dev/null || true'
        )
        finding = inside(roots, setup)["profiles root"]
        assert finding["state"] == "fail"
        assert "No space left" in finding["message"]

    @pytest.mark.namespaces
    @needs_namespaces()
    def test_a_small_root_that_runs_nothing_and_does_not_last(self, roots: Roots) -> None:
        roots.profiles.mkdir()
        roots.telemetry.mkdir()
        setup = (
            'mount -t tmpfs -o size=8m,nr_inodes=500,noexec tmpfs "$profiles"; '
            'mount -t tmpfs -o size=4g,noexec tmpfs "$telemetry"'
        )
        checks = inside(roots, setup)
        assert checks["profiles root"]["state"] == "ok"
        assert {checks[f"profiles {what}"]["state"] for what in ("mount", "space", "inodes")} == {"fail"}
        assert "noexec" in checks["profiles mount"]["message"]
        assert (checks["telemetry mount"]["state"], checks["telemetry space"]["state"]) == ("warn", "warn")

    @pytest.mark.slow
    @needs_fuse()
    def test_a_file_server_that_is_dead_holds_up_its_own_check_only(self, roots: Roots) -> None:
        roots.profiles.mkdir()
        source = roots.base / "source"
        source.mkdir()
        with subprocess.Popen(["bindfs", "-f", str(source), str(roots.profiles)]) as server:
            try:
                while not os.path.ismount(roots.profiles):
                    assert server.poll() is None
                    time.sleep(0.05)
                server.send_signal(signal.SIGSTOP)
                started = time.monotonic()
                checks = doctor(roots, "--device", "cpu")
                assert time.monotonic() - started < 60
            finally:
                server.send_signal(signal.SIGCONT)
                subprocess.run(["fusermount3", "-u", str(roots.profiles)], check=True, timeout=TIMEOUT_S)
        assert checks["profiles root"]["state"] == "fail"
        assert "no answer within" in checks["profiles root"]["message"]
        assert checks["telemetry root"]["state"] == "ok"


class TestSystem:
    def test_file_names_that_are_ascii(self, roots: Roots) -> None:
        roots.extra_env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        checks = doctor(roots, "--device", "cpu")
        assert checks["encoding"]["state"] == "warn"
        assert "LC_ALL=C)" in checks["encoding"]["message"]

    def test_too_few_open_files(self, roots: Roots) -> None:
        command = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *roots.command("doctor", "--json", "--device", "cpu")]
        done = subprocess.run(command, env=roots.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        finding = found(done)["open files"]
        assert (finding["state"], finding["message"]) == ("warn", "soft limit 1024, hard limit 1024")

    @pytest.mark.namespaces
    @needs_namespaces()
    @pytest.mark.parametrize(("reaps", "state"), [(False, "warn"), (True, "ok")])
    def test_the_init(self, roots: Roots, reaps: bool, state: str) -> None:
        wait_for_all = "while pid != child: pid, status = os.wait()"
        wait_for_one = "pid, status = os.waitpid(child, 0)"
        init = (
            "import os, sys\n"
            "child, pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0\n"
            f"{wait_for_all if reaps else wait_for_one}\n"
            "sys.exit(os.waitstatus_to_exitcode(status))\n"
        )
        setup = f"set -- {sys.executable} -c '{init}' \"$@\""
        finding = inside(roots, setup, unshare="-rmpf --mount-proc")["init"]
        assert finding["state"] == state, finding
        assert "(pid 1)" in finding["message"]
