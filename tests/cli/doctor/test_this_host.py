"""`rayprep doctor` as people start it, on this host as it is."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator

from tests.cli.doctor.runs import TIMEOUT_S, doctor
from tests.conftest import Roots


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
