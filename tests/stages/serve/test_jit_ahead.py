"""SGLang's own modules in a real child process, with a stand-in for SGLang's kernels and their compiler."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.environment import CHILD_MARK
from rayprep.host.layout import Layout
from rayprep.host.model_files import ModelFiles
from rayprep.host.process import marked_processes
from rayprep.model.caches import CacheName
from rayprep.model.process_end import Cleanup
from rayprep.model.spec import DeviceChoice, PrepSpec
from rayprep.sglang.architecture import parse_architecture
from rayprep.stages.protocol import BuildContext, StageRequest
from rayprep.stages.serve.jit_ahead import LOG, SglangJit, modules_ahead
from rayprep.store.cache_watch import entry_name
from rayprep.store.scan import scan_cache
from tests.model.samples import DIGEST, signature
from tests.processes import wait_for
from tests.sglang.jit_sources import jit_sources
from tests.stages.contexts import MEANS, build_context

STAND_IN = Path(__file__).parents[2] / "fakes" / "sglang_lib"
MODELS = Path(__file__).parents[2] / "gpu/models"
HASH = "0123456789abcdef__arch_9.0a__tvmffi_0.1.11"


def request(model: str = "qwen3-moe-fp8-4l", host: Mapping[str, object] = {}) -> StageRequest:
    config = MODELS / model / "config.json"
    return StageRequest(
        spec=PrepSpec(model=model),
        model=ModelFiles(model, config, DIGEST, parse_architecture(config.read_text(), model)),
        device=DeviceChoice.CUDA,
        signature=signature(**host),
        means=MEANS,
    )


@dataclass
class Host:
    """The roots of one test, and its compiler: $1 is a module's name, $2 the library."""

    base: Path
    env: dict[str, str] = field(default_factory=dict)
    ends: list[Cleanup] = field(default_factory=list)

    def compiler(self, script: str) -> None:
        path = self.base / "nvcc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.env["FAKE_SGLANG_JIT"] = str(path)

    @property
    def libraries(self) -> set[str]:
        found = self.cache.glob(f"sgl_kernel_jit_*_{HASH}/*.so")
        return {path.stem.removeprefix("sgl_kernel_jit_") for path in found}

    def sglang(self, release: str) -> None:
        """Makes SGLang's functions those of a release that has them in `sglang.kernels`."""
        library = self.base / "library"
        shutil.copytree(STAND_IN, library)
        for source in jit_sources(release).values():
            path = library.joinpath(*source.module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"from sglang.kernels.jit.utils import {', '.join(source.imports)}\n\n\n{source.text}\n")
        self.env |= {"PYTHONPATH": str(library), "SGLANG_JIT_CACHE_DIR": str(self.cache)}

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "profiles", self.base / "telemetry")

    @property
    def cache(self) -> Path:
        return self.layout.cache(CacheName.SGLANG_JIT)

    def context(self, cancelled: Callable[[], bool] = lambda: False, deadline_s: float = 60) -> BuildContext:
        inherited: Mapping[str, str] = {"PYTHONPATH": str(STAND_IN), "TVM_FFI_CACHE_DIR": str(self.cache)}
        env, log = {**inherited, **self.env}, self.base / "serve.log"
        return build_context(
            self.layout, log, self.base, env, self.ends.append, cancelled=cancelled, deadline_s=deadline_s
        )

    def build(self, asked: StageRequest | None = None) -> tuple[str, ...]:
        with SglangJit(asked or request(), self.context()) as ahead:
            return ahead.finish()

    def left_running(self) -> bool:
        """Whether anything lives that was started with this test's compiler."""
        return bool(marked_processes("FAKE_SGLANG_JIT", self.env["FAKE_SGLANG_JIT"]))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_all_modules_are_compiled_side_by_side(host: Host) -> None:
    names = {module.name for module in modules_ahead(request())}
    assert len(names) == 5
    # Each compiler waits, for 20 s at most, until all the others have begun.
    begun = f'ls "{host.base}"/begun.* | wc -l'
    wait = f'i=0; while [ "$({begun})" -lt {len(names)} ]; do i=$((i + 1)); [ $i -lt 400 ] || exit 1; sleep 0.05; done'
    host.compiler(f'touch "{host.base}/begun.$1"; {wait}; echo "$1" > "$2"')
    assert host.build() == ()
    assert host.libraries == names
    assert [end.killed for end in host.ends] == [True]
    assert not (host.base / "serve.log").exists(), "the server's own"


@pytest.mark.parametrize("model", ["llama-fp8-2l", "deepseek-v3-fp8-4l"])
def test_sglang_calls_them_as_the_plan_does(host: Host, model: str) -> None:
    host.compiler('echo "$1" > "$2"')
    asked = request(model)
    assert host.build(asked) == ()
    assert host.libraries == {module.name for module in modules_ahead(asked)}


@pytest.mark.parametrize("release", ["0.5.18", "0.5.21", "0.5.23"])
@pytest.mark.parametrize("model", ["qwen3-moe-fp8-4l", "llama-fp8-2l", "deepseek-v3-fp8-4l"])
def test_later_releases_keep_them_elsewhere(host: Host, model: str, release: str) -> None:
    host.compiler('echo "$1" > "$2"')
    host.sglang(release)
    asked = request(model, host={"sglang_version": release})
    assert host.build(asked) == ()
    files = scan_cache(host.layout.profiles, CacheName.SGLANG_JIT).files
    start = "sglang_jit/sm90a/sgl_kernel_jit_"
    assert {path.removeprefix(start).split("/")[0] for path in files} == {m.name for m in modules_ahead(asked)}
    assert len({entry_name(path) for path in files}) == len(modules_ahead(asked))


def test_one_that_fails_is_named_and_the_others_are_built(host: Host) -> None:
    said = 'main.cu(3): error: identifier "x" is undefined'
    host.compiler(f"""case $1 in qknorm*) echo 'FAILED: main.o'; echo '{said}'; exit 1;; esac; echo "$1" > "$2" """)
    name = "qknorm_128_true_bf16_t"
    assert host.build() == (f"sglang_jit: 1 of 5 modules were left to the server: {name}: RuntimeError: {said}",)
    assert host.libraries == {module.name for module in modules_ahead(request())} - {name}
    assert said in (host.base / LOG).read_text()


def test_another_sglang_is_one_warning(host: Host) -> None:
    other = host.base / "other/sglang/jit_kernel"
    other.mkdir(parents=True)
    for name in ("../__init__", "__init__", "rope"):  # without the functions, and without the other modules
        (other / f"{name}.py").touch()
    host.env["PYTHONPATH"] = str(host.base / "other")
    (warning,) = host.build()
    assert warning.startswith("sglang_jit: 5 of 5 modules were left to the server: ")
    assert "No module named 'sglang.jit_kernel.activation'" in warning
    assert "has no attribute '_jit_fused_rope_module'" in (host.base / LOG).read_text()


def test_an_sglang_that_takes_the_process_down_is_one_warning(host: Host) -> None:
    other = host.base / "other"
    other.mkdir()
    (other / "sglang.py").write_text("import os\nos._exit(7)")
    host.env["PYTHONPATH"] = str(other)
    (warning,) = host.build()
    assert warning.startswith("sglang_jit: 5 of 5 modules")
    assert warning.endswith("the compiling process ended by status 7")


def test_a_run_that_is_cancelled_ends_the_compilers(host: Host) -> None:
    begun = host.base / "begun"
    host.compiler(f'touch "{begun}"; exec sleep 60')
    with pytest.raises(Interrupted), SglangJit(request(), host.context(begun.exists)) as ahead:
        ahead.finish()
    assert not host.left_running()
    assert [end.killed for end in host.ends] == [True]


def test_a_server_that_fails_ends_the_compilers(host: Host) -> None:
    host.compiler("exec sleep 60")
    with pytest.raises(StageError, match="the server's"), SglangJit(request(), host.context()):
        wait_for(host.left_running, "the child to have its environment")
        raise StageError(ErrorType.SERVER_CRASHED, "the server's")
    assert not host.left_running()
    assert [end.killed for end in host.ends] == [True]


def test_compilers_that_never_end_are_ended_at_the_deadline(host: Host) -> None:
    host.compiler("exec sleep 60")
    with pytest.raises(StageError) as caught, SglangJit(request(), host.context(deadline_s=2)) as ahead:
        ahead.finish()
    assert caught.value.error_type is ErrorType.STAGE_TIMEOUT
    assert not host.left_running()


@pytest.mark.parametrize("host_has", [{"compute_capability": "sm_100"}, {"nvcc": None}])
def test_where_nothing_is_known_or_nothing_compiles_no_process_is_started(
    host: Host, host_has: dict[str, object]
) -> None:
    assert host.build(request(host=host_has)) == ()
    assert host.ends == []
    assert not (host.base / LOG).exists()


def test_its_environment_is_the_servers(host: Host) -> None:
    host.compiler(f'env > "{host.base}/env"; echo "$1" > "$2"')
    assert host.build(request("deepseek-v2-lite-fp8-2l")) == ()
    seen = (host.base / "env").read_text().splitlines()
    assert "TVM_FFI_CUDA_ARCH_LIST=9.0a" in seen
    assert any(line.startswith(f"{CHILD_MARK}=") for line in seen)
