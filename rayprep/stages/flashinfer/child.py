"""The child process of the `flashinfer` stage: builds FlashInfer's modules side by side, or looks for work left.

    python -P -m rayprep.stages.flashinfer.child REQUEST.json

Each module is built by itself, as a server will load it: with its own ninja in its own folder. One ninja for all
would log elsewhere, and the server would compile again. Mode `check` imports neither torch nor flashinfer: it asks
ninja what it would do. Answers in lines of JSON on standard output (`child.lines`); everything else goes to
standard error.

A build that was killed needs no cleaning up: what its log has not got, ninja makes again, and every load of a module
asks ninja first. Half-written objects and libraries are therefore overwritten, never loaded.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from rayprep.base.errors import ErrorType
from rayprep.sglang.flashinfer_modules import NEWER_GENERATORS, FlashInferModule
from rayprep.stages.child.failures import ChildError, failure
from rayprep.stages.child.lines import Emit, StepLine, UnitFailed, answer
from rayprep.stages.flashinfer.protocol import ModuleDone, ModulesLine, ModulesRequest

_NICE = 10
"""Of the modules that compile sooner than the longest ones, for whose end a starting server waits. All of them want
more CPUs than a host of 16 has, and DeepGEMM's compilers and that server share these."""
_LONGEST = 2
"""So many, the first in the request, are not niced."""
NOTHING_TO_DO = "ninja: no work to do."


class JitSpec(Protocol):
    """What we use of a module's recipe. Source: flashinfer/jit/core.py (0.6.14 to 0.7.2)."""

    name: str

    @property
    def is_aot(self) -> bool: ...
    @property
    def build_dir(self) -> Path: ...
    @property
    def jit_library_path(self) -> Path: ...
    def build(self, verbose: bool, need_lock: bool) -> None: ...


class CalledOtherwise(ChildError):
    """Another flashinfer: it has no such generator, or one with other arguments."""

    error_type = ErrorType.UNSUPPORTED


def main(argv: list[str]) -> int:
    return answer(argv, ModulesRequest, _work, failure)


def _work(request: ModulesRequest, emit: Emit) -> ModulesLine:
    if os.environ.get("FLASHINFER_WORKSPACE_BASE") != request.workspace:
        raise ValueError("FLASHINFER_WORKSPACE_BASE is not the request's workspace")
    return ModulesLine(modules=tuple((_build if request.mode == "build" else _check)(request, emit)))


def _build(request: ModulesRequest, emit: Emit) -> Iterator[ModuleDone]:
    """Builds all modules at once; the first that fails ends it, and the parent ends the compilers of the others."""
    modules = enumerate(request.modules)
    jobs = [(0 if number < _LONGEST else _NICE, str(module), _specs(module)) for number, module in modules]
    ended: SimpleQueue[ModuleDone | tuple[str, BaseException]] = SimpleQueue()

    def work(nice: int, unit: str, specs: list[JitSpec]) -> None:
        try:
            os.nice(nice)  # on Linux of this thread alone, and of the compilers that it starts (nice(2))
            ended.put(_build_one(unit, specs, Path(request.workspace)))
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            ended.put((specs[0].name, error))

    for job in jobs:
        # Daemons: an interpreter that gives up does not wait for them.
        threading.Thread(target=work, args=job, daemon=True).start()
    for number in range(1, len(jobs) + 1):
        done = ended.get()
        if isinstance(done, tuple):
            raise UnitFailed(done[0]) from done[1]
        how = "compiled" if done.compiled else "found"
        emit(StepLine(hint=f"{how} {done.name} in {done.seconds:.1f} s", n=number, m=len(jobs)))
        yield done


def _specs(module: FlashInferModule) -> list[JitSpec]:
    """Call the generators that this flashinfer calls for the module; each writes sources into the workspace.

    Returns:
        The spec that is built, and those whose sources alone are written when it is loaded.

    Raises:
        UnitFailed: this flashinfer has no such generator, or it refuses.
    """
    import torch

    def resolve(arg: bool | int | str) -> object:
        named = getattr(torch, arg, None) if isinstance(arg, str) else None
        return named if isinstance(named, torch.dtype) else arg

    try:
        loaded = _loaded(module)
        args = [resolve(arg) for arg in loaded.args]
        return [generate(*args) for generate in _generators(loaded)]
    except (AttributeError, TypeError) as error:
        raise UnitFailed(str(module)) from CalledOtherwise(f"{type(error).__name__}: {error}")
    except Exception as error:
        raise UnitFailed(str(module)) from error


def _loaded(module: FlashInferModule) -> FlashInferModule:
    """Return FA2's module where this flashinfer knows that FA3 has none of these widths (since 0.6.15)."""
    if not module.fa3_widths:
        return module
    has_fa3 = getattr(importlib.import_module("flashinfer.utils"), "is_fa3_prefill_head_dim_supported", None)
    return module if has_fa3 is None or has_fa3(*module.fa3_widths) else module.by_fa2


def _generators(module: FlashInferModule) -> list[Callable[..., JitSpec]]:
    """Return the newer generators where this flashinfer has them, which it then loads the module by."""
    if module.newer:
        place = importlib.import_module(NEWER_GENERATORS)
        if hasattr(place, module.newer[0]):
            return [getattr(place, name) for name in module.newer]
    return [_generator(module.generator)]


def _generator(name: str) -> Callable[..., JitSpec]:
    """A generator by name. Those of norm, cascade and sampling are in submodules of `flashinfer.jit` alone."""
    place = importlib.import_module("flashinfer.jit")
    home = f"flashinfer.jit.{name.removeprefix('gen_').removesuffix('_module')}"
    if not hasattr(place, name) and importlib.util.find_spec(home):
        place = importlib.import_module(home)
    generate: Callable[..., JitSpec] = getattr(place, name)
    return generate


def _build_one(unit: str, specs: list[JitSpec], workspace: Path) -> ModuleDone:
    spec, *unbuilt = specs
    beside = tuple(other.name for other in unbuilt)
    done = ModuleDone(unit=unit, name=spec.name, seconds=0.0, compiled=False, folder=None, beside=beside)
    if spec.is_aot:  # flashinfer-jit-cache is installed, and its library is what a server loads
        return done
    started, before = time.monotonic(), _written_at(spec.jit_library_path)
    # A server loads under this lock, and so does another child of ours. Since 0.6.17 it is not taken unless asked for.
    spec.build(verbose=False, need_lock=True)
    return done.model_copy(
        update={
            "seconds": round(time.monotonic() - started, 3),
            "compiled": _written_at(spec.jit_library_path) != before,
            "folder": spec.build_dir.relative_to(workspace).as_posix(),
        }
    )


def _written_at(library: Path) -> int | None:
    try:
        return library.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _check(request: ModulesRequest, emit: Emit) -> Iterator[ModuleDone]:
    for number, built in enumerate(request.built, 1):
        started, left = time.monotonic(), False
        if built.folder is not None:
            try:
                left = _has_work(Path(request.workspace, built.folder))
            except Exception as error:
                raise UnitFailed(built.name) from error
        emit(StepLine(hint=f"checked {built.name}", n=number, m=len(request.built)))
        yield built.model_copy(update={"compiled": left, "seconds": round(time.monotonic() - started, 3)})


def _has_work(folder: Path) -> bool:
    """Whether loading the module would compile. The command is `run_ninja`'s (flashinfer/jit/cpp_ext.py), with -n."""
    folder = folder.resolve()
    command = ["ninja", "-v", "-C", str(folder), "-f", str(folder / "build.ninja"), "-n"]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    print(done.stdout, file=sys.stderr)
    return done.returncode != 0 or NOTHING_TO_DO not in done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
