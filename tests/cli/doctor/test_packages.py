"""`rayprep doctor` where other libraries are installed."""

from tests.cli.doctor.runs import TESTED, distributions, doctor
from tests.conftest import Roots


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
