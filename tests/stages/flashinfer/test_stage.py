"""The flashinfer stage in real processes: real ninja and locks, with a stand-in for flashinfer and its compiler."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.layout import Layout
from rayprep.host.model_files import ModelFiles
from rayprep.model.caches import CacheName
from rayprep.model.plan import NotNeeded, Unable, Work
from rayprep.model.process_end import Cleanup
from rayprep.model.spec import DeviceChoice, PrepSpec
from rayprep.sglang.architecture import parse_architecture
from rayprep.sglang.flashinfer_modules import FlashInferModule
from rayprep.stages.child.lines import FailLine, StepLine
from rayprep.stages.flashinfer.protocol import CHILD_LINE, ModulesLine, ModulesRequest
from rayprep.stages.flashinfer.stage import FlashInferStage
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.store.scan import scan_cache
from tests.model.samples import DIGEST, signature
from tests.needs import needs_tool
from tests.stages.contexts import MEANS, build_context

STAND_IN = Path(__file__).parents[2] / "fakes" / "flashinfer_lib"
CONFIG = Path(__file__).parents[2] / "gpu/models/qwen3-moe-fp8-4l/config.json"
STAGE = FlashInferStage()
PREFILL = "batch_prefill_dtype_q_bf16_dtype_kv_bf16"
NAMES = {f"{PREFILL}_sm90", PREFILL, "cascade", "sampling", "norm"}
HOME = ".cache/flashinfer/0.6.14/90a"

needs_ninja = needs_tool("ninja")


def request(
    *server_args: str, device: DeviceChoice = DeviceChoice.CUDA, tp: int = 1, host: Mapping[str, object] = {}
) -> StageRequest:
    args = server_args or ("--attention-backend=flashinfer",)
    architecture = parse_architecture(CONFIG.read_text(), str(CONFIG))
    return StageRequest(
        spec=PrepSpec(model="qwen", tp=tp, server_args=args),
        model=ModelFiles(slug="qwen", source=CONFIG, digest=DIGEST, architecture=architecture),
        device=device,
        signature=signature(**host),
        means=MEANS,
    )


@dataclass
class Host:
    """The two roots of one test, and what a build has reported."""

    base: Path
    env: dict[str, str] = field(default_factory=dict)
    reports: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    ends: list[Cleanup] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "profiles", self.base / "telemetry")

    @property
    def workspace(self) -> Path:
        return self.layout.cache(CacheName.FLASHINFER)

    def folder(self, name: str) -> Path:
        return self.workspace / HOME / "cached_ops" / name

    def library(self, name: str) -> Path:
        return self.folder(name) / f"{name}.so"

    def child_env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(STAND_IN), "FLASHINFER_WORKSPACE_BASE": str(self.workspace), **self.env}

    def compiler(self, script: str) -> None:
        """Makes `script` the compiler: $1 is the source, $2 the object."""
        path = self.base / "nvcc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.env["FLASHINFER_NVCC"] = str(path)

    def build(self, cancelled: Callable[[], bool] = lambda: False) -> Built:
        asked = request()
        work = STAGE.plan(asked)
        assert isinstance(work, Work), work
        return STAGE.build(asked, work, self._context(cancelled))

    def _context(self, cancelled: Callable[[], bool]) -> BuildContext:
        scratch = self.base / "scratch"
        for made in (scratch, self.workspace):
            made.mkdir(parents=True, exist_ok=True)
        return build_context(
            self.layout,
            self.base / "stage.log",
            scratch,
            self.child_env(),
            self.ends.append,
            cancelled=cancelled,
            report=lambda hint, done, total: self.reports.append((hint, done, total)),
        )

    def child(self, asked: ModulesRequest, **env: str) -> list[StepLine | FailLine | ModulesLine]:
        """Runs the child alone; its lines."""
        file = self.base / "request.json"
        file.write_text(asked.model_dump_json())
        self.workspace.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "rayprep.stages.flashinfer.child", str(file)]
        whole: Mapping[str, str] = {**self.child_env(), "FLASHINFER_CUDA_ARCH_LIST": "9.0a", **env}
        done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=60, check=False)
        return [CHILD_LINE.validate_json(line) for line in done.stdout.splitlines()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@needs_ninja
def test_all_modules_are_built_and_the_second_time_none(host: Host) -> None:
    first = host.build()
    assert set(first.compiled) == set(first.units)
    assert all(host.library(name).read_text() == f"// {name}\n" for name in NAMES)
    assert host.reports[0] == ("compiling 5 FlashInfer modules", 0, 5)
    assert [(done, total) for hint, done, total in host.reports if hint.startswith("compiled")] == [
        (n, 5) for n in range(1, 6)
    ]
    assert [end.killed for end in host.ends] == [True, True]
    assert first.env == {"FLASHINFER_CUDA_ARCH_LIST": "9.0a"}

    second = host.build()
    assert second.compiled == ()
    assert second.used == first.used


@needs_ninja
def test_what_a_start_reads_is_what_is_listed(host: Host) -> None:
    other = host.workspace / ".cache/flashinfer/0.5.0/90a/cached_ops/norm/norm.so"
    other.parent.mkdir(parents=True)
    other.write_text("of another flashinfer")
    used = host.build().used
    top = f"flashinfer/{HOME}"
    of_one = {file for file in used if "/norm" in file or "/sampling/" in file}
    assert of_one == {
        *(f"{top}/cached_ops/norm/{file}" for file in ("norm.so", "kernel.cuda.o")),
        *(f"{top}/cached_ops/sampling/{file}" for file in ("sampling.so", "kernel.cuda.o")),
        f"{top}/generated/sampling/kernel.cu",
    }
    assert used < scan_cache(host.layout.profiles, CacheName.FLASHINFER).files.keys()


@needs_ninja
def test_the_module_is_the_one_that_this_flashinfer_loads(host: Host) -> None:
    units = host.build().units
    host.env["FAKE_NEWER"] = "1"
    newer = host.build()
    assert newer.units == units
    assert newer.compiled == tuple(unit for unit in units if unit.startswith("batch_prefill:fa2:"))
    of_fa2 = {file.removeprefix(f"flashinfer/{HOME}/") for file in newer.used if f"/{PREFILL}" in file}
    equal, unlike = f"{PREFILL}_kv_stride_equal", f"{PREFILL}_paged_kv_stride_independent"
    assert {file for file in of_fa2 if "_sm90" not in file} == {
        *(f"cached_ops/{equal}/{file}" for file in (f"{equal}.so", "kernel.cuda.o")),
        f"generated/{equal}/kernel.cu",
        f"generated/{unlike}/kernel.cu",  # which a server writes, and would be new to it
    }


@needs_ninja
@pytest.mark.parametrize(
    ("width", "env", "name"),
    [
        (80, {}, f"{PREFILL}_sm90"),
        (80, {"FAKE_NEWER": "1"}, f"{PREFILL}_kv_stride_equal"),
        (128, {"FAKE_NEWER": "1"}, f"{PREFILL}_sm90"),
    ],
)
def test_widths_that_fa3_has_not_are_fa2s_where_this_flashinfer_says_so(
    host: Host, width: int, env: dict[str, str], name: str
) -> None:
    args = ("fa3", "bfloat16", "bfloat16", "bfloat16", "int32", width, width, 0, False, False, False)
    module = FlashInferModule(generator="gen_batch_prefill_module", args=args)
    *_, end = host.child(ModulesRequest(mode="build", workspace=str(host.workspace), modules=(module,)), **env)
    assert isinstance(end, ModulesLine)
    assert [(built.unit, built.name) for built in end.modules] == [(str(module), name)]


@needs_ninja
@pytest.mark.parametrize("lost", ["sampling.so", ".ninja_log"])
def test_only_what_lost_something_is_built_again(host: Host, lost: str) -> None:
    host.build()
    (host.folder("sampling") / lost).unlink()
    assert host.build().compiled == ("sampling",)
    assert host.library("sampling").exists()


@needs_ninja
def test_a_build_that_was_killed_leaves_nothing_that_is_loaded(host: Host) -> None:
    begun = host.base / "begun"
    host.compiler(f'case $2 in */sampling/*) echo half > "$2"; touch {begun}; exec sleep 60;; esac; cp "$1" "$2"')
    with pytest.raises(Interrupted):
        host.build(cancelled=begun.exists)
    assert host.ends[-1].killed
    assert not host.library("sampling").exists()
    host.compiler('cp "$1" "$2"')
    assert "sampling" in host.build().compiled
    assert host.library("sampling").read_text() == "// sampling\n"


def test_after_an_abort_only_what_lost_its_content_goes(host: Host) -> None:
    names = [f"flashinfer/{HOME}/cached_ops/norm/{name}" for name in ("norm.so", "kernel.cuda.o", "gone.o")]
    for name, content in zip(names[:2], ("", "half"), strict=True):
        path = host.layout.profiles / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert STAGE.unsound(host.layout, names) == names[:1]


@needs_ninja
def test_a_module_that_would_be_compiled_again_fails_the_stage_by_name(host: Host) -> None:
    # A source newer than its object: what a copy that loses modification times looks like.
    host.compiler('cp "$1" "$2"; case $2 in */cascade/*) touch -d "+1 hour" "$1";; esac')
    with pytest.raises(StageError, match=r"compile again: cascade$") as caught:
        host.build()
    assert caught.value.error_type is ErrorType.VERIFY_FAILED


@needs_ninja
@pytest.mark.parametrize(
    ("said", "error_type"),
    [
        ('kernel.cu(3): error: identifier "x" is undefined', ErrorType.COMPILE_FAILED),
        (
            'cuda_toolkit.h:41:4: error: #error "CUDA compiler and CUDA toolkit headers are incompatible"',
            ErrorType.TOOLCHAIN_MISMATCH,
        ),
        ("nvcc fatal   : cannot write /tmp/x.ii: No space left on device", ErrorType.INSUFFICIENT_DISK),
    ],
)
def test_a_failed_compile_names_the_module_and_the_first_error(host: Host, said: str, error_type: ErrorType) -> None:
    host.compiler(f"""case $2 in */sampling/*) echo '{said}'; exit 1;; esac; cp "$1" "$2" """)
    with pytest.raises(StageError) as caught:
        host.build()
    assert caught.value.error_type is error_type
    assert caught.value.message == f"sampling: {' '.join(said.split())}"
    assert said in (host.base / "stage.log").read_text()


@needs_ninja
def test_a_compiler_that_is_not_there_is_the_toolchain(host: Host) -> None:
    host.env["FLASHINFER_NVCC"] = "/nowhere/bin/nvcc"
    with pytest.raises(StageError, match=r"nvcc: .*not found") as caught:
        host.build()
    assert caught.value.error_type is ErrorType.TOOLCHAIN_MISMATCH


@needs_ninja
def test_a_module_that_came_compiled_is_neither_built_nor_checked(host: Host) -> None:
    host.env["FAKE_AOT"] = "norm"
    built = host.build()
    assert set(built.units) - set(built.compiled) == {"norm"}
    assert not host.folder("norm").exists()


def test_another_flashinfer_is_said_to_be_unsupported(host: Host) -> None:
    asked = ModulesRequest(
        mode="build", workspace=str(host.workspace), modules=(FlashInferModule(generator="gen_other_module"),)
    )
    (said,) = host.child(asked)
    assert isinstance(said, FailLine)
    assert (said.error_type, said.unit) == ("unsupported", "other")


def test_without_flashinfer_the_toolchain_is_wrong(host: Host) -> None:
    empty = host.base / "empty"
    empty.mkdir()
    (empty / "torch.py").touch()
    (empty / "flashinfer.py").write_text("raise ModuleNotFoundError(\"No module named 'tvm_ffi'\")")
    asked = ModulesRequest(
        mode="build", workspace=str(host.workspace), modules=(FlashInferModule(generator="gen_norm_module"),)
    )
    (said,) = host.child(asked, PYTHONPATH=str(empty))
    assert isinstance(said, FailLine)
    assert (said.error_type, said.unit) == ("toolchain_mismatch", "norm")


@needs_ninja
def test_the_check_imports_nothing_heavy_and_changes_nothing(host: Host) -> None:
    norm = FlashInferModule(generator="gen_norm_module")
    asked = ModulesRequest(mode="build", workspace=str(host.workspace), modules=(norm,))
    *_, built = host.child(asked)
    assert isinstance(built, ModulesLine)
    refusing = host.base / "refusing"
    refusing.mkdir()
    for name in ("torch", "flashinfer"):
        (refusing / f"{name}.py").write_text("raise SystemExit('imported')")
    check = ModulesRequest(mode="check", workspace=str(host.workspace), built=built.modules)
    for lost, left in ((None, False), (".ninja_log", True), ("build.ninja", True)):
        if lost:
            (host.folder("norm") / lost).unlink()
        before = {path: path.stat().st_mtime_ns for path in host.folder("norm").iterdir()}
        step, end = host.child(check, PYTHONPATH=str(refusing))
        assert step == StepLine(hint="checked norm", n=1, m=1)
        assert isinstance(end, ModulesLine)
        assert [(module.name, module.compiled) for module in end.modules] == [("norm", left)]
        assert {path: path.stat().st_mtime_ns for path in host.folder("norm").iterdir()} == before


def test_the_workspace_must_be_the_environments(host: Host) -> None:
    (said,) = host.child(ModulesRequest(mode="check", workspace="/elsewhere"))
    assert isinstance(said, FailLine)
    assert "FLASHINFER_WORKSPACE_BASE" in said.message


def test_the_plan_lists_the_modules_without_building() -> None:
    work = STAGE.plan(request("--attention-backend=flashinfer"))
    if isinstance(work, Unable):
        assert "ninja" in work.message
        return
    assert isinstance(work, Work)
    assert len(work.units) == 5
    assert work.required_bytes > 0
    assert json.loads(work.model_dump_json())["units"] == list(work.units)


def test_a_host_without_a_gpu_and_a_server_without_modules_need_nothing() -> None:
    no_gpu = STAGE.plan(request(device=DeviceChoice.CPU))
    assert isinstance(no_gpu, NotNeeded)
    assert no_gpu.reason == "no_gpu"
    none = STAGE.plan(request("--enable-deterministic-inference"))
    assert isinstance(none, NotNeeded)
    assert none.reason == "no_modules"


@pytest.mark.parametrize(
    ("changes", "error_type", "said"),
    [
        ({"nvcc": None}, ErrorType.TOOLCHAIN_MISMATCH, "nvcc"),
        ({"flashinfer_version": None, "cxx": None}, ErrorType.TOOLCHAIN_MISMATCH, "C++"),
        ({"profiles_root": "/r&d"}, ErrorType.UNSUPPORTED, "under '/r&d'"),
    ],
)
def test_what_a_host_lacks_is_named(changes: dict[str, object], error_type: ErrorType, said: str) -> None:
    plan = STAGE.plan(request(host=changes))
    assert isinstance(plan, Unable)
    assert plan.error_type is error_type
    assert said in plan.message


def test_modules_of_another_gpu_are_left_to_the_server() -> None:
    plan = STAGE.plan(request(host={"compute_capability": "sm_80", "device_name": "NVIDIA A100"}))
    assert isinstance(plan, NotNeeded)
    assert plan.reason == "unknown_gpu"
    assert "A100" in plan.detail


def test_a_missing_ninja_is_named() -> None:
    plan = STAGE.plan(replace(request(), means=replace(MEANS, ninja=False)))
    assert isinstance(plan, Unable)
    assert "ninja on PATH" in plan.message
