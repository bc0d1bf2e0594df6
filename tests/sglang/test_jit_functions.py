"""How SGLang's functions are called: held against the functions themselves, as the wheels of each release have them."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayprep.sglang.architecture import parse_architecture
from rayprep.sglang.jit_functions import PDL, JitModule, kv_cache
from rayprep.sglang.jit_modules import jit_modules
from rayprep.sglang.releases import KNOWN
from tests.sglang.jit_sources import JitSource, jit_sources

MODELS = Path(__file__).parents[1] / "gpu/models"
NAMES = ("qwen3-moe-fp8-4l", "llama-fp8-2l", "deepseek-v3-fp8-4l", "deepseek-v2-lite-fp8-2l", "qwen2-fp8-2l")
TORCH = SimpleNamespace(bfloat16="bf16_t", float16="fp16_t", float8_e4m3fn="fp8_e4m3_t", int64="int64_t")


def every_module(release: str, **changes: object) -> list[JitModule]:
    modules: list[JitModule] = []
    for name in NAMES:
        config = json.loads((MODELS / name / "config.json").read_text())
        architecture = parse_architecture(json.dumps({**config, **changes}), name)
        modules += jit_modules(architecture, 1, (), release)
    return modules


def name_by(source: JitSource, module: JitModule) -> str:
    """Calls the recorded function as the child does. Returns the name of the module that it has compiled."""
    names: list[str] = []
    scope = {
        "torch": TORCH,
        "is_arch_support_pdl": lambda: True,
        "make_cpp_args": lambda *args: [str(arg).lower() if isinstance(arg, bool) else str(arg) for arg in args],
        "load_jit": lambda *args: names.append("_".join(args)),
    }
    exec(compile(ast.parse(source.text), module.module, "exec"), scope)
    args = [True if arg == PDL else getattr(TORCH, arg) if isinstance(arg, str) else arg for arg in module.args]
    scope[module.function](*args)  # type: ignore[operator]
    (name,) = names
    return name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("release", KNOWN)
def test_each_is_called_as_its_release_defines_it(release: str, dtype: str) -> None:
    sources = jit_sources(release)
    modules = every_module(release, torch_dtype=dtype)
    assert {module.module for module in modules} == sources.keys(), "all that is listed, and nothing else"
    for module in modules:
        source = sources[module.module]
        (function,) = ast.parse(source.text).body
        assert isinstance(function, ast.FunctionDef)
        assert module.function == function.name
        assert name_by(source, module) == module.name
        # The child asks the function's own module for these.
        assert PDL not in module.args or "is_arch_support_pdl" in source.imports
        assert "torch" in source.imports


@pytest.mark.parametrize("release", KNOWN)
@pytest.mark.parametrize("row", [4, 36, 64, 128, 256, 768, 1024, 1152, 2048, 4096, 16384, 65536])
def test_a_row_is_written_by_as_many_threads_as_sglang_chooses(release: str, row: int) -> None:
    module = kv_cache(release, row)
    assert name_by(jit_sources(release)[module.module], module) == module.name


def test_an_unknown_release_is_the_one_that_was_read() -> None:
    assert kv_cache(None, 1024) == kv_cache("0.5.16", 1024)
    assert kv_cache("0.6.0", 1024) == kv_cache("0.5.23", 1024)
