"""The `deep_gemm` stage: its plans, and its builds with a stand-in for DeepGEMM, torch and nvcc."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.layout import Layout
from rayprep.host.model_files import ModelFiles
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, StagePlan, Unable, Work
from rayprep.model.process_end import Cleanup
from rayprep.model.spec import DeepGemmVia, DeviceChoice, PrepSpec
from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.gemm_shapes import EXPERTS, GemmShape
from rayprep.stages.deep_gemm.cache import entries, files_of, whole_entry
from rayprep.stages.deep_gemm.stage import DeepGemmStage, build_shapes
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.scan import scan_cache
from tests.model.samples import DIGEST, signature
from tests.stages.contexts import build_context, means

TESTS = Path(__file__).parents[2]
MODEL = TESTS / "gpu/models/qwen3-moe-fp8-4l/config.json"
UNITS = ("GEMM_NT_F8F8BF16 N=2048 K=4096 groups=1", "GEMM_NT_F8F8BF16 N=5120 K=2048 groups=1")
KERNELS = 8
"""The stand-in's: for each of two products a layout kernel, and one for each of three sizes of tile."""


@dataclass
class Bench:
    """A stage, and what it builds with."""

    base: Path
    environ: dict[str, str] = field(default_factory=dict)
    reports: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    cleanups: list[Cleanup] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False
    version: str = "0.1.4.post1"

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "profiles", self.base / "telemetry")

    @property
    def cache(self) -> Path:
        return self.layout.cache(CacheName.DEEP_GEMM)

    @property
    def stage(self) -> DeepGemmStage:
        return DeepGemmStage()

    def request(
        self,
        *,
        architecture: Architecture | None = None,
        device: DeviceChoice = DeviceChoice.CUDA,
        server_args: tuple[str, ...] = (),
        deep_gemm_via: DeepGemmVia = DeepGemmVia.KERNELS,
        host: Mapping[str, object] = {},
    ) -> StageRequest:
        """What the stage is asked for; `host` has fields of its signature."""
        known = architecture or parse_architecture(MODEL.read_text(encoding="utf-8"), "x")
        return StageRequest(
            spec=PrepSpec(model="m", server_args=server_args, deep_gemm_via=deep_gemm_via),
            model=ModelFiles(slug="m", source=MODEL, digest=DIGEST, architecture=known),
            device=device,
            signature=signature(deep_gemm_version=self.version, profiles_root=str(self.layout.profiles), **host),
            means=means(self.environ),
        )

    def context(self) -> BuildContext:
        shutil.rmtree(self.layout.scratch, ignore_errors=True)
        scratch = self.layout.scratch / "deep_gemm"
        for folder in (scratch, self.cache, self.base / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        env = {
            "PYTHONPATH": f"{TESTS}/fakes/deep_gemm_lib:{TESTS.parent}",
            "DG_JIT_NVCC_COMPILER": f"{TESTS}/fakes/nvcc",
            "HOME": str(self.base / "home"),
            "FAKE_NVCC_LOG": str(self.base / "calls"),
            **self.layout.cache_env(),
            **self.environ,
        }
        return build_context(
            self.layout,
            self.base / "log",
            scratch,
            env,
            self.cleanups.append,
            cancelled=self.cancelled,
            report=lambda *report: self.reports.append(report),
        )

    def build(self, request: StageRequest | None = None) -> Built:
        request = request or self.request()
        work = self.stage.plan(request)
        assert isinstance(work, Work)
        return self.stage.build(request, work, self.context())

    def compiles(self) -> int:
        calls = self.base / "calls"
        return len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Changes(TypedDict, total=False):
    """What another request differs in."""

    device: DeviceChoice
    server_args: tuple[str, ...]
    deep_gemm_via: DeepGemmVia
    host: Mapping[str, object]


def plan(bench: Bench, **changes: Unpack[Changes]) -> StagePlan:
    return bench.stage.plan(bench.request(**changes))


def test_one_unit_is_one_product(bench: Bench) -> None:
    work = plan(bench)
    assert isinstance(work, Work)
    assert (work.units, work.by_sglang) == (UNITS, False)
    by_the_server = plan(bench, deep_gemm_via=DeepGemmVia.SERVER)
    assert isinstance(by_the_server, Work)
    assert (by_the_server.units, by_the_server.by_sglang) == (UNITS, True)
    bench.environ["SGL_DG_USE_NVRTC"] = "1"
    with_nvrtc = plan(bench, host={"nvcc": None})
    assert isinstance(with_nvrtc, Work)
    assert with_nvrtc.units == tuple(f"{unit}, nvrtc" for unit in UNITS)


def test_the_second_deep_gemm_has_nvcc_alone_and_a_newer_one(bench: Bench) -> None:
    bench.version = "0.2.0"
    bench.environ["SGL_DG_USE_NVRTC"] = "1"
    work = plan(bench, host={"nvcc": "12.9.41"})
    assert isinstance(work, Work)
    assert work.units == UNITS, "the variable changes nothing"
    for nvcc, said in ((None, "missing: nvcc"), ("12.8.93", "nvcc 12.8.93 is too old")):
        unable = plan(bench, host={"nvcc": nvcc})
        assert isinstance(unable, Unable)
        assert unable.error_type is ErrorType.TOOLCHAIN_MISMATCH
        assert said in unable.message
    bench.version = "0.1.7"
    assert isinstance(plan(bench, host={"nvcc": "12.8.93"}), Work)


@pytest.mark.parametrize(
    ("environ", "changes", "reason"),
    [
        ({}, {"device": DeviceChoice.CPU}, "no_gpu"),
        ({}, {"server_args": ("--fp8-gemm-backend", "triton")}, "no_fp8_blocks"),
        ({"SGLANG_ENABLE_JIT_DEEPGEMM": "false"}, {}, "deep_gemm_off"),
        ({}, {"host": {"compute_capability": "sm_89"}}, "deep_gemm_off"),
        ({}, {"host": {"compute_capability": "sm_120"}}, "deep_gemm_off"),
    ],
)
def test_nothing_to_do(bench: Bench, environ: dict[str, str], changes: Changes, reason: str) -> None:
    bench.environ.update(environ)
    found = plan(bench, **changes)
    assert isinstance(found, NotNeeded)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("changes", "error_type", "said"),
    [
        ({"host": {"nvcc": None}}, ErrorType.TOOLCHAIN_MISMATCH, "nvcc"),
        ({"host": {"install_prefix": "/opt/my venv"}}, ErrorType.UNSUPPORTED, "under '/opt/my venv'"),
    ],
)
def test_what_cannot_be_done_here(bench: Bench, changes: Changes, error_type: ErrorType, said: str) -> None:
    found = plan(bench, **changes)
    assert isinstance(found, Unable)
    assert found.error_type is error_type
    assert said in found.message


def test_deep_gemm_that_is_not_installed(bench: Bench) -> None:
    found = bench.stage.plan(
        dataclasses.replace(bench.request(), signature=signature(deep_gemm_version=None, profiles_root="/profiles"))
    )
    assert isinstance(found, Unable)
    assert "DeepGEMM" in found.message


def test_a_model_that_is_not_known_is_left_to_the_server(bench: Bench) -> None:
    known = parse_architecture(MODEL.read_text(encoding="utf-8"), "x")
    unknown = bench.request(architecture=known.model_copy(update={"architectures": ("GrokForCausalLM",)}))
    work = bench.stage.plan(unknown)
    assert isinstance(work, Work)
    assert (work.units, work.by_sglang) == (("server",), True)
    newer = plan(bench, host={"compute_capability": "sm_100"})
    assert isinstance(newer, Work)
    assert newer.units == ("server",)


def test_kernels_are_listed_compiled_and_checked(bench: Bench) -> None:
    built = bench.build()
    found = entries(bench.cache)
    assert len(found) == KERNELS
    assert all(whole_entry(entry) for entry in found)
    assert built.units == UNITS
    assert built.compiled == tuple(entry.name for entry in found)
    assert built.used == {
        f"deep_gemm/cache/{entry.name}/{file}" for entry in found for file in ("kernel.cu", "kernel.cubin")
    }
    assert bench.compiles() == KERNELS
    assert ("compiling kernels", KERNELS, KERNELS) in bench.reports
    assert bench.reports[-1] == ("checking kernels", 2, 2)
    assert [each.killed for each in bench.cleanups] == [True]
    assert not list((bench.cache / "tmp").iterdir())
    cubins = bench.stage.describe(bench.layout, [scan_cache(bench.layout.profiles, CacheName.DEEP_GEMM)]).cubins
    assert cubins is not None
    assert (cubins.count, cubins.bytes) == (KERNELS, sum((e / "kernel.cubin").stat().st_size for e in found))


def test_only_what_is_missing_or_half_written_is_compiled(bench: Bench) -> None:
    bench.build()
    gemms = [entry for entry in entries(bench.cache) if "gemm" in entry.name]
    shutil.rmtree(gemms[0])
    (gemms[1] / "kernel.cubin").unlink()
    inodes = {entry.name: entry.stat().st_ino for entry in gemms[2:]}
    built = bench.build()
    assert built.compiled == tuple(entry.name for entry in gemms[:2])
    assert len(built.used) == 2 * KERNELS
    assert all(whole_entry(entry) for entry in gemms)
    assert {entry.name: entry.stat().st_ino for entry in gemms[2:]} == inodes


def test_a_missed_shape_is_built_by_itself(bench: Bench) -> None:
    missed = GemmShape(kind=EXPERTS, n=1536, k=2048, groups=128)
    built = build_shapes([missed], bench.request(), bench.context())
    assert (built.units, len(built.compiled)) == ((str(missed),), 1)
    with pytest.raises(StageError, match="NEW_KIND") as caught:
        build_shapes([GemmShape(kind="NEW_KIND", n=1, k=1)], bench.request(), bench.context())
    assert caught.value.error_type is ErrorType.UNSUPPORTED


@pytest.mark.parametrize(
    ("environ", "error_type", "said"),
    [
        ({"FAKE_NVCC_FAULT": "headers"}, ErrorType.TOOLCHAIN_MISMATCH, "a layout kernel: .*headers are incompatible"),
        ({"FAKE_NVCC_FAULT": "full"}, ErrorType.INSUFFICIENT_DISK, "No space left"),
        ({"DG_JIT_NVCC_COMPILER": "/bin/false"}, ErrorType.COMPILE_FAILED, "return_code == 0"),
        ({"PYTHONPATH": str(TESTS.parent), "PYTHONSAFEPATH": "1"}, ErrorType.TOOLCHAIN_MISMATCH, "No module named"),
    ],
    ids=["headers", "full", "version", "not installed"],
)
def test_failures_are_named(bench: Bench, environ: Mapping[str, str], error_type: ErrorType, said: str) -> None:
    bench.environ.update(environ)
    with pytest.raises(StageError, match=said) as caught:
        bench.build()
    assert caught.value.error_type is error_type
    assert caught.value.log_tail
    assert not entries(bench.cache)


def test_a_kernel_that_was_not_listed_fails_the_check(bench: Bench) -> None:
    bench.environ["FAKE_FICKLE"] = "place"
    with pytest.raises(StageError, match="still asks for a kernel to be compiled") as caught:
        bench.build()
    assert caught.value.error_type is ErrorType.VERIFY_FAILED


def test_a_second_process_that_wants_other_kernels_fails_the_check(bench: Bench) -> None:
    bench.environ |= {"FAKE_FICKLE": "process", "SGL_DG_USE_NVRTC": "1"}
    with pytest.raises(StageError, match="a second process still compiled") as caught:
        bench.build()
    assert caught.value.error_type is ErrorType.VERIFY_FAILED


def test_the_second_layout_is_listed_and_compiled_as_the_first(bench: Bench) -> None:
    bench.version = "0.2.3.post2"
    bench.environ["FAKE_LAYOUT"] = "2"
    built = bench.build()
    found = entries(bench.cache)
    assert [whole_entry(entry) for entry in found] == [True] * KERNELS
    assert [files_of(entry) for entry in found] == [[".committed", "kernel.cu", "kernel.cubin", "meta.json"]] * KERNELS
    assert (len(built.used), built.compiled) == (4 * KERNELS, tuple(entry.name for entry in found))
    assert ("compiling kernels", KERNELS, KERNELS) in bench.reports
    compilers = {json.loads((entry / "meta.json").read_text())["compiler_info"]["path"] for entry in found}
    assert compilers == {f"{TESTS}/fakes/nvcc"}, "the stand-in is in no file that stays"
    again = bench.build()
    assert (again.compiled, again.used) == ((), built.used)
    assert bench.compiles() == KERNELS + 2, "the two layout kernels are what the listing goes on with"


@pytest.mark.parametrize("environ", [{"FAKE_NVCC_FAULT": "syntax"}, {"FAKE_FICKLE": "place"}])
def test_the_second_layouts_failures_are_named_too(bench: Bench, environ: Mapping[str, str]) -> None:
    bench.environ |= {"FAKE_LAYOUT": "2", **environ}
    with pytest.raises(StageError, match=r"error: expected|still asks for a kernel to be compiled"):
        bench.build()


def test_where_a_cubin_is_disassembled_no_stub_is_tried(bench: Bench) -> None:
    bench.environ |= {"FAKE_LAYOUT": "2", "DG_JIT_DEBUG": "1"}
    assert bench.build().compiled
    assert any(hint == "compiling kernels by shares" for hint, *_ in bench.reports)


def test_a_cancelled_build_leaves_no_process(bench: Bench) -> None:
    bench.environ["FAKE_NVCC_FAULT"] = "hang"
    bench.cancelled = (bench.base / "calls.hangs").exists
    with pytest.raises(Interrupted):
        bench.build()
    assert [each.killed for each in bench.cleanups] == [True]
    assert not entries(bench.cache)


def test_of_an_aborted_run_whole_entries_are_kept(bench: Bench) -> None:
    for name, files in {"kernel.a.0": ("kernel.cu", "kernel.cubin"), "kernel.b.0": ("kernel.cubin",)}.items():
        (bench.cache / "cache" / name).mkdir(parents=True)
        for file in files:
            (bench.cache / "cache" / name / file).write_text("x", encoding="utf-8")
    suspects = list(scan_cache(bench.layout.profiles, CacheName.DEEP_GEMM).files)
    assert len(suspects) == 3
    assert list(bench.stage.unsound(bench.layout, suspects)) == ["deep_gemm/cache/kernel.b.0/kernel.cubin"]
