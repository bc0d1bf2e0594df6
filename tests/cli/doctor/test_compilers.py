"""`rayprep doctor` on a host with other compilers, or with none."""

import signal
from pathlib import Path

import pytest

from tests.cli.doctor.runs import TIMEOUT_S, doctor, executable, toolkit
from tests.conftest import Roots
from tests.processes import alive, family, wait_for


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
