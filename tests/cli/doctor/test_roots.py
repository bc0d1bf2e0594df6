"""`rayprep doctor` where a root is missing, full, read-only or dead."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.cli.doctor.runs import TIMEOUT_S, doctor, inside
from tests.conftest import Roots
from tests.needs import needs_fuse, needs_namespaces


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
