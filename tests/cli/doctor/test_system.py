"""`rayprep doctor` where the system allows less: file names, open files, an init that does not reap."""

import subprocess
import sys

import pytest

from tests.cli.doctor.runs import TIMEOUT_S, doctor, found, inside
from tests.conftest import Roots
from tests.needs import needs_namespaces


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
