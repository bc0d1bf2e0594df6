"""Installed libraries, from their versions: the tested sets, and what differs from them."""

import pytest

from rayprep.doctor import package_checks
from rayprep.doctor.findings import Finding, State
from rayprep.doctor.toolchain_checks import judge_ninja
from rayprep.sglang.pins import PINS
from tests.doctor.words import FAIL, OK, WARN

TESTED = {"sglang": "0.5.16", **PINS["0.5.16"], "deep-gemm": None}


class TestPackages:
    def one(self, needed: bool = True, /, **changes: str | None) -> Finding:
        versions = {**TESTED, **{name.replace("_", "-"): version for name, version in changes.items()}}
        (finding,) = package_checks.judge_sglang(versions, needed=needed)
        return finding

    def test_the_tested_set(self) -> None:
        assert self.one().state is OK
        assert self.one(torch="2.11.0+cu130").state is OK

    @pytest.mark.parametrize("release", PINS)
    def test_the_set_of_each_known_release(self, release: str) -> None:
        installed = {name: pin.replace(".*", ".1") for name, pin in PINS[release].items()}
        assert self.one(True, sglang=release, **installed).state is OK
        older = self.one(True, sglang=release, **{**installed, "triton": "3.5.0"})
        assert older.state is WARN
        assert older.remedy in (
            f"pip install triton=={PINS[release]['triton']}",
            f"pip install 'triton=={PINS[release]['triton']}'",
        )

    def test_each_difference_is_named_with_its_pin(self) -> None:
        finding = self.one(torch="2.12.0", triton="3.7.0")
        assert finding.state is WARN
        assert "torch 2.12.0 (pinned: 2.11.0), triton 3.7.0 (pinned: 3.6.0)" in finding.message
        assert finding.remedy == "pip install torch==2.11.0 triton==3.6.0"

    def test_a_version_that_was_not_tried(self) -> None:
        older, newer = self.one(sglang="0.5.15"), self.one(sglang="0.6.0", torch="2.20.0")
        assert (older.state, newer.state) == (WARN, WARN)
        assert "0.5.15, which was not tried" in older.message
        assert "0.6.0 is newer than 0.5.23, the newest that rayprep knows" in newer.message
        assert "torch" not in newer.message, "there is nothing to compare it with"

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
