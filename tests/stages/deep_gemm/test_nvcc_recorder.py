"""The stand-in compiler, called as DeepGEMM calls it: through the shell, from a folder of its own."""

import subprocess
from pathlib import Path

import pytest

from rayprep.stages.deep_gemm.cache import recorded_arguments
from rayprep.stages.deep_gemm.listing_folder import ListingFolder

NVCC = str(Path(__file__).parents[2] / "fakes/nvcc")
GEMM = "#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>\n"
LAYOUT = "#include <deep_gemm/impls/smxx_layout.cuh>\n"


class Recorder:
    def __init__(self, base: Path) -> None:
        self.folder = ListingFolder(base / "scratch")
        self.folder.path.mkdir()
        self.env = self.folder.prepare(NVCC)
        self.entry = base / "kernel.x.0"
        self.entry.mkdir()

    def call(self, arguments: str) -> subprocess.CompletedProcess[str]:
        line = f"cd {self.entry} && {self.env['DG_JIT_NVCC_COMPILER']} {arguments}"
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)

    def compile(self, source: str) -> subprocess.CompletedProcess[str]:
        (self.entry / "kernel.cu").write_text(source, encoding="utf-8")
        return self.call(f"{self.entry}/kernel.cu -cubin -o {self.entry}/kernel.cubin -I/opt/include --a=b,c -O3")


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def test_the_version_is_the_real_compilers(recorder: Recorder) -> None:
    assert "release 13.0" in recorder.call("--version").stdout


def test_a_gemm_is_noted_and_not_compiled(recorder: Recorder) -> None:
    assert recorder.compile(GEMM).returncode == 0
    paths = (f"{recorder.entry}/kernel.cu", "-cubin", "-o", f"{recorder.entry}/kernel.cubin")
    assert recorded_arguments(recorder.entry) == (*paths, "-I/opt/include", "--a=b,c", "-O3")


def test_the_second_layouts_command_is_noted_too(recorder: Recorder) -> None:
    (recorder.entry / "kernel.cu").write_text(GEMM, encoding="utf-8")
    cubin = f"{recorder.entry}/kernel.cubin"
    assert recorder.call(f"{recorder.entry}/kernel.cu --cubin --output-file {cubin} --include-path /i").returncode == 0
    arguments = recorded_arguments(recorder.entry)
    assert arguments is not None
    assert arguments[1:] == ("--cubin", "--output-file", cubin, "--include-path", "/i")


def test_another_kernel_is_compiled(recorder: Recorder) -> None:
    assert recorder.compile(LAYOUT).returncode == 0
    assert recorded_arguments(recorder.entry) is None
    assert (recorder.entry / "kernel.cubin").read_bytes().startswith(b"\x7fELF")
    assert recorder.folder.failure() is None


def test_the_real_compilers_failure_is_kept(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVCC_FAULT", "headers")
    done = recorder.compile(LAYOUT)
    assert done.returncode == 1
    assert "headers are incompatible" in done.stdout
    assert recorder.folder.failure() == done.stdout


@pytest.mark.parametrize("source", [GEMM, LAYOUT])
def test_once_it_refuses_it_compiles_nothing(recorder: Recorder, tmp_path: Path, source: str) -> None:
    recorder.folder.turn_to(tmp_path / "real")
    done = recorder.compile(source)
    assert (done.returncode, "was not listed" in done.stderr) == (1, True)
    assert not (recorder.entry / "kernel.cubin").exists()
    assert "release 13.0" in recorder.call("--version").stdout


def test_the_view_is_turned_from_the_listing_to_the_cache(recorder: Recorder, tmp_path: Path) -> None:
    view = Path(recorder.env["DG_JIT_CACHE_DIR"])
    (view / "of the listing").touch()
    assert (recorder.folder.listing / "of the listing").exists()
    real = tmp_path / "real"
    real.mkdir()
    recorder.folder.turn_to(real)
    assert view.resolve() == real
