"""nvcc beside the CUDA headers: which versions fit, and where headers are found."""

from pathlib import Path

import pytest

from rayprep.doctor.cuda_checks import Header, Nvcc, cudart_version, include_folders, judge_nvcc, read_headers
from rayprep.doctor.findings import Finding, State
from tests.doctor.words import FAIL, OK, WARN


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

    @pytest.mark.parametrize(
        ("version", "deep_gemm", "state"),
        [("12.8.93", "0.2.0", FAIL), ("12.9.41", "0.2.3.post2", OK), ("12.8.93", "0.1.7", OK), ("12.8.93", None, OK)],
    )
    def test_the_second_deep_gemm_needs_a_newer_one(self, version: str, deep_gemm: str | None, state: State) -> None:
        header = Header("/own/cuda_runtime_api.h", version[:4])
        finding = judge_nvcc(Nvcc("/n", version, own=(header,)), needed=True, deep_gemm=deep_gemm)
        assert finding.state is state
        assert (state is OK) == ("needs 12.9 or newer" not in finding.message)

    def test_the_remedy_is_of_the_cuda_that_torch_has_whatever_the_headers_are(self) -> None:
        """No package of nvcc is called so for CUDA 12, and some parts of 13.5 are of an older one."""
        for headers in ("12.8", "13.5"):
            assert "'nvidia-cuda-cccl==13.0.*'" in (self.judge("13.1.2", headers).remedy or "")

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
