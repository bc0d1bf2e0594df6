"""The doctor's decisions, from facts, and its readers, against real files and processes."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from rayprep.host.doctor import clock_checks, gpu_checks, init_checks, mounts, package_checks, system_checks
from rayprep.host.doctor.bounded import answer_within, run_bounded
from rayprep.host.doctor.cuda_checks import Header, Nvcc, cudart_version, include_folders, judge_nvcc, read_headers
from rayprep.host.doctor.gpu_checks import GpuUse, judge_driver, judge_gpus, judge_use
from rayprep.host.doctor.storage_checks import Space, examine_root, judge_inodes, judge_space, try_out
from rayprep.host.doctor.toolchain_checks import judge_ninja
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.host.process import marked_processes
from rayprep.model.base import parse_utc
from rayprep.model.doctor import DoctorReport, Finding, State, fail, ok, warn
from rayprep.model.spec import DeviceChoice
from tests.processes import wait_for

GIB = 1 << 30
OK, WARN, FAIL = State.OK, State.WARN, State.FAIL


def report(*findings: Finding) -> DoctorReport:
    return DoctorReport(
        rayprep_version="1",
        host="h",
        taken_at="2026-01-01T00:00:00Z",
        device="auto",
        profiles_root="/p",
        telemetry_root="/t",
        findings=findings,
    )


class TestFindings:
    def test_bad_news_without_a_remedy_is_a_mistake(self) -> None:
        with pytest.raises(ValidationError, match="needs a remedy"):
            Finding(check="x", state=State.FAIL, message="broken")

    def test_whatever_is_found_becomes_one_line_that_encodes(self) -> None:
        finding = warn("x", "first\nsecond\x1b[31m\tred \udcff", "do\r\nthis")
        assert finding.message == "first second [31m red \\udcff"
        assert finding.remedy == "do this"
        assert json.loads(finding.model_dump_json())["message"] == finding.message

    def test_only_a_failure_fails_the_report(self) -> None:
        assert report(ok("a", "fine")).exit_code == 0
        assert report(ok("a", "fine"), warn("b", "hm", "look")).exit_code == 0
        assert report(warn("b", "hm", "look"), fail("c", "no", "mend")).exit_code == 3


class TestNvcc:
    HOME = "/usr/local/cuda"

    def judge(self, version: str, own: str = "", pip: str = "", *, needed: bool = True) -> Finding:
        headers = [
            (Header(f"/{where}/cuda_runtime_api.h", text),) if text else ()
            for where, text in (("own", own), ("pip", pip))
        ]
        return judge_nvcc(Nvcc(f"{self.HOME}/bin/nvcc", version, own=headers[0], pip=headers[1]), needed=needed)

    @pytest.mark.parametrize(
        ("version", "own", "pip", "state"),
        [
            ("13.0.88", "13.0", "", OK),
            ("13.0.88", "13.0", "13.0", OK),
            ("13.0.88", "", "13.0", OK),
            ("13.5.1", "13.0", "13.0", FAIL),
            ("13.5.1", "", "13.0", FAIL),
            ("12.8.93", "12.8", "13.0", WARN),
            ("13.0.88", "12.0", "", FAIL),
            ("13.1.2", "13.10", "", FAIL),
            ("13.0.88", "", "", FAIL),
        ],
    )
    def test_compiler_and_headers_must_be_of_one_minor_version(
        self, version: str, own: str, pip: str, state: State
    ) -> None:
        assert self.judge(version, own, pip).state is state

    def test_a_mismatch_fails_on_a_host_without_gpus_too_and_names_both_and_the_pins(self) -> None:
        finding = self.judge("13.5.27", "13.0", needed=False)
        assert finding.state is FAIL
        assert "13.5.27" in finding.message
        assert "13.0 in /own" in finding.message
        assert "'nvidia-cuda-nvcc==13.0.*'" in (finding.remedy or "")

    def test_a_header_that_does_not_say_its_version_fits_no_compiler(self) -> None:
        unsaid = Nvcc("/n", "13.0.88", own=(Header("/own/cuda_runtime_api.h", None),))
        assert judge_nvcc(unsaid, needed=True).state is FAIL

    def test_none_is_fine_only_where_none_is_needed(self) -> None:
        assert judge_nvcc(Nvcc(None, None), needed=False).state is OK
        assert judge_nvcc(Nvcc(None, None), needed=True).state is FAIL

    def test_pips_nvcc_is_the_remedy_where_there_is_one(self) -> None:
        finding = judge_nvcc(Nvcc(None, None, pip_homes=("/site/nvidia/cu13",)), needed=True)
        assert finding.remedy == "set CUDA_HOME=/site/nvidia/cu13"

    @pytest.mark.parametrize(("needed", "state"), [(True, FAIL), (False, WARN)])
    def test_one_that_does_not_run_is_named_with_the_reason(self, needed: bool, state: State) -> None:
        finding = judge_nvcc(Nvcc("/x/nvcc", None, problem="Exec format error"), needed=needed)
        assert (finding.state, finding.message) == (state, "/x/nvcc: Exec format error")

    @pytest.mark.parametrize(
        ("text", "version"),
        [
            ("/* x */\n#define CUDART_VERSION  13000\n", "13.0"),
            ("# define CUDART_VERSION 12090 /* 12.9 */", "12.9"),
            ("#define __CUDART_API_VERSION CUDART_VERSION\n", None),
            ("// CUDART_VERSION 13000\n", None),
        ],
    )
    def test_the_headers_own_version(self, text: str, version: str | None) -> None:
        assert cudart_version(text) == version

    def test_nvccs_own_folders_come_from_its_dry_run(self) -> None:
        said = (
            "#$ TOP=/opt/cuda\n"
            '#$ INCLUDES="-I/opt/cuda 13/bin/../targets/x86_64-linux/include"  "-I/more"  \n'
            '#$ gcc "-I/not/this"\n'
        )
        assert include_folders(said) == ["/opt/cuda 13/bin/../targets/x86_64-linux/include", "/more"]
        assert include_folders("nvcc fatal: no\n") == []

    def test_two_names_of_one_header_count_once(self, tmp_path: Path) -> None:
        real = tmp_path / "targets" / "include"
        real.mkdir(parents=True)
        (real / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 12080\n")
        (tmp_path / "include").symlink_to(real)
        found = read_headers([tmp_path / "include", real, tmp_path / "absent"])
        assert found == (Header(str(real / "cuda_runtime_api.h"), "12.8"),)


def gpu(name: str = "NVIDIA H200", sms: int = 132) -> Gpu:
    return Gpu(uuid="GPU-1", name=name, compute_capability="sm_90", sm_count=sms, memory_bytes=141 * GIB)


class TestGpus:
    @pytest.mark.parametrize(
        ("device", "inventory", "on_the_bus", "state", "words"),
        [
            ("auto", GpuInventory(), 0, OK, "no GPU, the CPU stage only"),
            ("cpu", GpuInventory(), 4, OK, "no GPU, the CPU stage only"),
            ("cuda", GpuInventory(), 0, FAIL, "NVML shows no GPU"),
            ("auto", GpuInventory(), 4, WARN, "4 NVIDIA devices are on the PCI bus"),
            ("auto", GpuInventory(problem="NVML: Unknown Error"), 0, FAIL, "cannot be read: NVML: Unknown Error"),
            ("cpu", GpuInventory(problem="NVML: Unknown Error"), 0, WARN, "cannot be read: NVML: Unknown Error"),
            ("auto", GpuInventory((gpu(), gpu())), 0, OK, "2 x NVIDIA H200 (sm_90, 132 SMs), 141.0 GiB each"),
            ("auto", GpuInventory((gpu(), gpu("NVIDIA H100"))), 0, FAIL, "GPUs of 2 kinds"),
            ("auto", GpuInventory((gpu(), gpu(sms=114))), 0, FAIL, "1 x NVIDIA H200 (sm_90, 114 SMs)"),
        ],
    )
    def test_what_is_there(
        self, device: str, inventory: GpuInventory, on_the_bus: int, state: State, words: str
    ) -> None:
        finding = judge_gpus(DeviceChoice(device), inventory, on_the_bus)
        assert finding.state is state
        assert words in finding.message

    @pytest.mark.parametrize(
        ("serves", "torch", "state"),
        [
            ("13.0", "13.0", OK),
            ("13.2", "12.8", OK),
            ("12.4", "12.8", OK),
            ("12.9", "13.0", FAIL),
            ("9.2", "13.0", FAIL),
            ("13.0", None, OK),
        ],
    )
    def test_a_driver_serves_its_own_major_version_and_older_ones(
        self, serves: str, torch: str | None, state: State
    ) -> None:
        assert judge_driver("580.1", serves, torch).state is state

    def test_a_busy_or_broken_gpu_is_named(self) -> None:
        idle, busy, broken = GpuUse(0, GIB, 0, 0), GpuUse(3, 70 * GIB, 2, 0), GpuUse(5, 0, 0, 7)
        assert [finding.state for finding in judge_use([idle])] == [OK, OK]
        use, memory = judge_use([idle, busy, broken])
        assert (use.state, use.message) == (WARN, "GPU 3: 70.0 GiB in use by 2 processes")
        assert (memory.state, memory.message) == (WARN, "uncorrected ECC errors: GPU 5: 7")

    def test_a_gpu_that_counts_no_errors_is_not_said_to_have_none(self) -> None:
        assert judge_use([GpuUse(0, 0, 0, None)])[1].message == "ECC errors are not counted here"

    def test_devices_on_the_bus(self, tmp_path: Path) -> None:
        for name, vendor, kind in (
            ("0", "0x10de", "0x030200"),
            ("1", "0x10de", "0x040300"),
            ("2", "0x8086", "0x030000"),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "vendor").write_text(f"{vendor}\n")
            (tmp_path / name / "class").write_text(f"{kind}\n")
        assert gpu_checks.nvidia_devices_on_the_bus(tmp_path) == 1
        assert gpu_checks.nvidia_devices_on_the_bus(tmp_path / "absent") == 0


TESTED = {"sglang": "0.5.16", **package_checks.TESTED["0.5.16"], "deep-gemm": None}


class TestPackages:
    def one(self, needed: bool = True, /, **changes: str | None) -> Finding:
        versions = {**TESTED, **{name.replace("_", "-"): version for name, version in changes.items()}}
        (finding,) = package_checks.judge_sglang(versions, needed=needed)
        return finding

    def test_the_tested_set(self) -> None:
        assert self.one().state is OK
        assert self.one(torch="2.11.0+cu130").state is OK

    def test_the_newer_pair(self) -> None:
        newer = {"sglang": "0.5.23", "torch": "2.14.1", "flashinfer_python": "0.7.2", "triton": "9.9"}
        assert self.one(True, **newer, sgl_deep_gemm="0.2.3.post2").state is OK
        assert self.one(True, **newer).state is WARN

    def test_each_difference_is_named_with_its_pin(self) -> None:
        finding = self.one(torch="2.12.0", triton="3.7.0")
        assert finding.state is WARN
        assert "torch 2.12.0 (tested: 2.11.0), triton 3.7.0 (tested: 3.6.0)" in finding.message
        assert finding.remedy == "pip install torch==2.11.0 triton==3.6.0"

    def test_a_version_that_was_not_tried(self) -> None:
        assert self.one(sglang="0.5.20").state is WARN

    @pytest.mark.parametrize(("needed", "state"), [(True, FAIL), (False, OK)])
    def test_no_sglang(self, needed: bool, state: State) -> None:
        assert self.one(needed, sglang=None).state is state

    @pytest.mark.parametrize(("needed", "state"), [(True, FAIL), (False, WARN)])
    def test_a_part_that_is_missing(self, needed: bool, state: State) -> None:
        finding = self.one(needed, sgl_deep_gemm=None)
        assert finding.state is state
        assert finding.remedy == "pip install sgl-deep-gemm==0.1.4.post1"

    def test_the_wrong_deep_gemm_fails_beside_the_right_one_too(self) -> None:
        assert package_checks.judge_deep_gemm(TESTED) == []
        (finding,) = package_checks.judge_deep_gemm({**TESTED, "deep-gemm": "2.1.1"})
        assert finding.state is FAIL
        assert "pip uninstall -y deep-gemm" in (finding.remedy or "")
        assert "sgl-deep-gemm==0.1.4.post1" in (finding.remedy or "")

    @pytest.mark.parametrize(
        ("version", "cuda", "needs_cuda", "state"),
        [
            ("2.11.0+cu130", "13.0", True, OK),
            ("2.13.0+cpu", None, False, OK),
            ("2.13.0+cpu", None, True, FAIL),
            ("2.9.1", None, False, WARN),
            (None, None, False, FAIL),
        ],
    )
    def test_torch(self, version: str | None, cuda: str | None, needs_cuda: bool, state: State) -> None:
        assert package_checks.judge_torch(version, cuda, needs_cuda=needs_cuda).state is state

    @pytest.mark.parametrize(
        ("version", "state"),
        [("2.55.0", OK), ("2.60.0", OK), ("2.9.3", FAIL), ("3.0.0", FAIL), ("3.0.0.dev0", FAIL), (None, FAIL)],
    )
    def test_ray(self, version: str | None, state: State) -> None:
        assert package_checks.judge_ray(version).state is state

    @pytest.mark.parametrize(
        ("version", "state"), [((3, 10, 4), WARN), ((3, 11, 0), OK), ((3, 13, 9), OK), ((3, 14, 0), WARN)]
    )
    def test_python(self, version: tuple[int, int, int], state: State) -> None:
        assert package_checks.judge_python(version).state is state

    def test_another_copy_of_rayprep_is_noticed(self) -> None:
        assert package_checks.judge_install(package_checks.Install("0.1.0", "0.1.0", "/x")).state is OK
        assert package_checks.judge_install(package_checks.Install("0.2.0", "0.1.0", "/x")).state is WARN

    @pytest.mark.parametrize(
        ("path", "answer", "beside", "needed", "state"),
        [
            ("/bin/ninja", "1.11.1", None, True, OK),
            ("/bin/ninja", None, None, True, FAIL),
            (None, None, None, False, OK),
            (None, None, "/venv/bin/ninja", True, FAIL),
        ],
    )
    def test_ninja(self, path: str | None, answer: str | None, beside: str | None, needed: bool, state: State) -> None:
        finding = judge_ninja(path, answer, beside, needed=needed)
        assert finding.state is state
        if beside:
            assert finding.remedy == "put /venv/bin on PATH"


MOUNTS = r"""/dev/vda / ext4 rw,relatime 0 0
server:/export /data nfs4 rw,vers=4.2,local_lock=none 0 0
tmpfs /data/scratch tmpfs rw,noexec 0 0
server:/old /old\040place nfs rw,nolock,vers=3,local_lock=all 0 0
first /twice ext4 rw 0 0
second /twice xfs rw 0 0
"""


class TestMounts:
    @pytest.mark.parametrize(
        ("path", "source"),
        [
            ("/", "/dev/vda"),
            ("/database/x", "/dev/vda"),
            ("/data", "server:/export"),
            ("/data/a/b", "server:/export"),
            ("/data/scratch/a", "tmpfs"),
            ("/old place/x", "server:/old"),
            ("/twice/x", "second"),
        ],
    )
    def test_the_deepest_mount_holds_a_path(self, path: str, source: str) -> None:
        mount = mounts.mount_of(path, mounts.parse_mounts(MOUNTS))
        assert mount is not None
        assert mount.source == source

    def test_no_mount_is_said_and_not_made_up(self) -> None:
        assert mounts.mount_of("/x", mounts.parse_mounts("tmpfs /y tmpfs rw 0 0\n")) is None

    def mount(self, kind: str, *options: str) -> mounts.Mount:
        return mounts.Mount("source", "/point", kind, frozenset({"rw", *options}))

    @pytest.mark.parametrize(
        ("kind", "options", "state"),
        [
            ("ext4", (), OK),
            ("nfs4", ("local_lock=none",), OK),
            ("nfs", ("local_lock=posix",), OK),
            ("nfs", ("local_lock=flock",), WARN),
            ("nfs", ("local_lock=all",), WARN),
            ("nfs", ("nolock",), WARN),
            ("lustre", ("flock",), OK),
            ("lustre", ("localflock",), WARN),
            ("gpfs", (), OK),
            ("fuse.sshfs", (), WARN),
            ("fuse.fuse-overlayfs", (), OK),
            ("virtiofs", (), WARN),
            ("ext4", ("nolock",), OK),
        ],
    )
    def test_locks_that_hold_on_one_host_only(self, kind: str, options: tuple[str, ...], state: State) -> None:
        assert mounts.judge_locks("locks", self.mount(kind, *options), second_taken=False).state is state

    def test_a_lock_that_two_can_hold_fails_whatever_the_file_system(self) -> None:
        for kind in ("ext4", "nfs4"):
            assert mounts.judge_locks("locks", self.mount(kind), second_taken=True).state is FAIL

    @pytest.mark.parametrize(
        ("kind", "options", "libraries", "state"),
        [
            ("ext4", (), True, OK),
            ("ext4", ("noexec",), True, FAIL),
            ("ext4", ("noexec",), False, OK),
            ("overlay", (), True, WARN),
            ("tmpfs", (), True, WARN),
        ],
    )
    def test_what_a_mount_does_to_the_caches(
        self, kind: str, options: tuple[str, ...], libraries: bool, state: State
    ) -> None:
        assert mounts.judge_mount("mount", self.mount(kind, *options), holds_libraries=libraries).state is state


class TestRoots:
    @pytest.mark.parametrize(
        ("free", "state"),
        [(GIB - 1, FAIL), (GIB, WARN), (20 * GIB - 1, WARN), (20 * GIB, OK), (5000 * GIB, OK)],
    )
    def test_space(self, free: int, state: State) -> None:
        assert judge_space("space", Space(free, 10_000 * GIB, 1, 1)).state is state

    @pytest.mark.parametrize(
        ("free", "total", "state"),
        [(999, 1000, FAIL), (4_999, 100_000, WARN), (5_000, 100_000, OK), (0, 0, OK)],
    )
    def test_inodes(self, free: int, total: int, state: State) -> None:
        assert judge_inodes("inodes", Space(GIB, GIB, free, total)).state is state

    def test_a_root_that_is_there_is_tried_and_left_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "kept").touch()
        probe = try_out(tmp_path)
        assert (probe.folder, probe.second_lock_taken) == (tmp_path, False)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    def test_a_root_that_is_not_there_is_not_made(self, tmp_path: Path) -> None:
        root = tmp_path / "a" / "b"
        assert try_out(root).folder == tmp_path
        assert list(tmp_path.iterdir()) == []
        assert "can be made in" in next(examine_root("profiles", root, holds_libraries=True)).message

    def test_a_root_in_a_file_or_behind_a_dead_link_fails_and_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        for root, why in (
            (tmp_path / "file", "Not a directory"),
            (tmp_path / "file" / "below", "Not a directory"),
            (tmp_path / "link", "No such file"),
        ):
            (finding,) = examine_root("profiles", root, holds_libraries=True)
            assert finding.state is FAIL
            assert why in finding.message
            assert str(root) in finding.message

    def test_a_socket_is_no_root(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            (finding,) = examine_root("telemetry", tmp_path / "socket", holds_libraries=False)
        assert finding.state is FAIL


UNLIMITED = resource.RLIM_INFINITY


class TestSystem:
    @pytest.mark.parametrize(
        ("soft", "hard", "state"),
        [
            (65535, 65535, OK),
            (1024, 1048576, OK),
            (1024, UNLIMITED, OK),
            (UNLIMITED, UNLIMITED, OK),
            (1024, 4096, WARN),
            (65534, 65534, WARN),
        ],
    )
    def test_open_files(self, soft: int, hard: int, state: State) -> None:
        assert system_checks.judge_open_files(soft, hard).state is state

    @pytest.mark.parametrize(("limit", "state"), [(4095, WARN), (4096, OK), (UNLIMITED, OK)])
    def test_processes(self, limit: int, state: State) -> None:
        assert system_checks.judge_processes(limit).state is state

    @pytest.mark.parametrize(
        ("total", "available", "limit", "state", "words"),
        [
            (64, 32, None, OK, "32.0 GiB of 64.0 GiB"),
            (64, 3, None, WARN, "3.0 GiB of 64.0 GiB"),
            (64, 0.5, None, FAIL, "0.5 GiB of 64.0 GiB"),
            (64, 32, 2, WARN, "2.0 GiB of 2.0 GiB available (the container's limit; the host has 64.0 GiB)"),
            (64, 32, 1 << 33, OK, "32.0 GiB of 64.0 GiB"),
        ],
    )
    def test_memory(self, total: float, available: float, limit: int | None, state: State, words: str) -> None:
        bound = None if limit is None else limit * GIB
        finding = system_checks.judge_memory(int(total * GIB), int(available * GIB), bound)
        assert finding.state is state
        assert words in finding.message

    def test_the_smallest_limit_on_the_way_up_counts_in_version_2(self, tmp_path: Path) -> None:
        (tmp_path / "pod" / "container").mkdir(parents=True)
        (tmp_path / "pod" / "memory.max").write_text("2048\n")
        (tmp_path / "pod" / "container" / "memory.max").write_text("max\n")
        assert system_checks.cgroup_memory_limit("0::/pod/container\n", tmp_path) == 2048
        assert system_checks.cgroup_memory_limit("0::/\n", tmp_path) is None

    def test_in_version_1_a_container_sees_its_own_group_at_the_top(self, tmp_path: Path) -> None:
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text("4096\n")
        membership = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n"
        assert system_checks.cgroup_memory_limit(membership, tmp_path) == 4096

    @pytest.mark.parametrize(("free", "state"), [(64 << 20, WARN), (2 * GIB, OK)])
    def test_shared_memory(self, free: int, state: State) -> None:
        assert system_checks.judge_shared_memory(free).state is state

    @pytest.mark.parametrize(("encoding", "state"), [("utf-8", OK), ("UTF8", OK), ("ascii", WARN), ("latin-1", WARN)])
    def test_encoding(self, encoding: str, state: State) -> None:
        assert system_checks.judge_encoding(encoding, "LANG=x").state is state


class TestClock:
    NOW = parse_utc("2026-11-21T12:00:00Z").timestamp()

    @pytest.mark.parametrize(
        ("now", "newest", "step", "state"),
        [
            (NOW, NOW - 5, 0.01, OK),
            (NOW, NOW + 30, 0.01, OK),
            (NOW, NOW + 3600, 0.01, FAIL),
            (0.0, -1.0, 0.01, FAIL),
            (NOW + 100 * 366 * 86400, NOW, 0.01, FAIL),
            (NOW, NOW - 5, -0.5, FAIL),
        ],
    )
    def test_clock(self, now: float, newest: float, step: float, state: State) -> None:
        assert clock_checks.judge_clock(clock_checks.Clock(now, newest, step)).state is state

    def test_the_reading_is_of_this_host(self) -> None:
        clock = clock_checks.read_clock()
        assert abs(clock.now - time.time()) < 5
        newest = max(path.stat().st_mtime for path in Path(clock_checks.__file__).parents[2].rglob("*.py"))
        assert clock.newest_file == newest

    @pytest.mark.parametrize(
        ("answer", "state", "words"),
        [
            ("NTPSynchronized=yes\n", OK, "synchronised"),
            ("NTPSynchronized=no\n", WARN, "not synchronised"),
            ("something else", OK, "unknown: something else"),
            (None, OK, "unknown: no bus"),
        ],
    )
    def test_what_timedatectl_says(self, answer: str | None, state: State, words: str) -> None:
        finding = clock_checks.judge_ntp(answer, "" if answer else "no bus")
        assert (finding.state, finding.message) == (state, words)


class TestInit:
    def test_a_name_may_hold_parentheses_and_spaces(self) -> None:
        assert init_checks.parse_stat("7 (a (b) c) Z 1 7 7 0") == init_checks.Process("a (b) c", "Z", 1)

    def test_only_a_zombie_that_stays_is_bad(self) -> None:
        assert init_checks.judge_init(init_checks.Orphan("tini (pid 1)", stays_zombie=False)).state is OK
        finding = init_checks.judge_init(init_checks.Orphan("sleep (pid 1)", stays_zombie=True))
        assert finding.state is WARN
        assert "--init" in (finding.remedy or "")


class TestBounded:
    def test_both_streams_and_the_status_come_back(self) -> None:
        ran = run_bounded(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], {}, 10)
        assert (ran.status, ran.output, ran.gist) == (3, "out\nerr\n", "err")

    def test_the_error_is_told_and_not_the_farewell(self) -> None:
        said = "echo 'In file x:'; echo 'x.cpp:1: fatal error: vector: none'; echo 'compilation terminated.'"
        assert run_bounded(["/bin/sh", "-c", said], {}, 10).gist == "x.cpp:1: fatal error: vector: none"

    def test_silence_is_told_by_its_status(self) -> None:
        assert run_bounded(["/bin/sh", "-c", "exit 3"], {}, 10).gist == "exit status 3"

    def test_at_the_time_out_the_grandchildren_end_too(self, tmp_path: Path) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer within 1 s"):
            run_bounded(["/bin/sh", "-c", f"sleep 300 & echo $! > {tmp_path / 'pid'}; wait"], dict(os.environ), 1)
        assert time.monotonic() - started < 10
        orphan = int((tmp_path / "pid").read_text())
        gone = (psutil.STATUS_ZOMBIE, None)
        wait_for(lambda: _status(orphan) in gone, "the sleep ends")

    def test_what_is_being_started_when_the_program_ends_does_not_outlive_it(self, tmp_path: Path) -> None:
        program = (
            "import os\n"
            "from rayprep.host.doctor.bounded import run_bounded, start\n"
            "command = ['/bin/sh', '-c', 'echo > \"$FIRST\"; sleep 300 & wait']\n"
            "for _ in range(100):\n"
            "    start(lambda: run_bounded(command, os.environ, 300))\n"
            "while not os.path.exists(os.environ['FIRST']):\n"
            "    pass\n"
        )
        environ = {**os.environ, "FIRST": str(tmp_path / "first")}
        subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)
        wait_for(lambda: marked_processes("FIRST", environ["FIRST"]) == [], "all commands end", 10.0)

    def test_nobody_waits_for_what_does_not_end(self) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="the sleeper: no answer within 0 s"):
            answer_within(0.1, "the sleeper", lambda: time.sleep(30))
        assert time.monotonic() - started < 10

    def test_an_answer_and_an_error_come_through(self) -> None:
        assert answer_within(10, "x", lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            answer_within(10, "x", lambda: 1 // 0)

    def test_what_is_not_there_is_an_os_error(self) -> None:
        with pytest.raises(FileNotFoundError):
            run_bounded([f"{sys.prefix}/no-such-program"], {}, 1)


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
