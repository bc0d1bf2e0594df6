"""The child process that compiles SGLang's own JIT modules side by side, by SGLang's own functions.

    python -P -m rayprep.stages.serve.jit_child REQUEST.json

Answers in one line of JSON a module on standard output (`JitLine`); everything else goes to standard error. A module
that fails is a line, and never the end of the others. Each lands where the server's would, and whoever comes early
waits for a lock: tvm_ffi's in its folder below TVM_FFI_CACHE_DIR (tvm_ffi/cpp/extension.py), from 0.5.18 on SGLang's
own below SGLANG_JIT_CACHE_DIR (sglang/kernels/jit/utils/compile/loader.py), where only whole builds are seen. SGLang
asks the GPU for its compute capability alone, which takes none of its memory.

TVM_FFI_CUDA_ARCH_LIST must be set until 0.5.17: `load_jit` (sglang/jit_kernel/utils/compile.py, 0.5.16) sets it while
it compiles and takes it away after, which one thread would do to the other's compile if it had not been there before.
Later ones do not read it.
"""

import importlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from types import ModuleType

from rayprep.base.records import read_tolerant
from rayprep.base.text import printable
from rayprep.host.files import read_bytes
from rayprep.sglang.jit_functions import PDL, Arg, JitModule
from rayprep.sglang.jit_modules import JitLine, JitRequest
from rayprep.stages.child.lines import claim_stdout
from rayprep.stages.deep_gemm.compile_jobs import first_error


def main(argv: list[str]) -> int:
    lines = claim_stdout()
    request = read_tolerant(JitRequest, read_bytes(argv[0]))
    ended: SimpleQueue[JitLine] = SimpleQueue()
    # All imports before all compiles: in threads of their own, those that need each other could wait for each other.
    for job in [(module, _compiler_of(module)) for module in request.modules]:
        # Daemons: an interpreter that gives up does not wait for them.
        threading.Thread(target=_compile, args=(*job, ended), daemon=True).start()
    for _ in request.modules:
        print(ended.get().model_dump_json(), file=lines, flush=True)
    return 0


def _compiler_of(module: JitModule) -> Callable[[], object]:
    """What compiles the module when it is called. Where this sglang has no such thing, it raises why."""
    try:
        place = importlib.import_module(module.module)
        return partial(getattr(place, module.function), *(_resolved(arg, place) for arg in module.args))
    except Exception as error:  # noqa: BLE001 - of this module alone, and said as what became of it
        return partial(_raise, error)


def _raise(error: Exception) -> None:
    raise error


def _resolved(arg: Arg, place: ModuleType) -> object:
    if arg == PDL:
        return place.is_arch_support_pdl()
    # A type, of the torch that the module itself imports.
    return getattr(place.torch, arg) if isinstance(arg, str) else arg


def _compile(module: JitModule, compiler: Callable[[], object], ended: "SimpleQueue[JitLine]") -> None:
    started, problem = time.monotonic(), None
    try:
        compiler()
    except BaseException as error:  # noqa: BLE001 - the main thread waits for a line of every module
        traceback.print_exc()
        problem = printable(f"{type(error).__name__}: {first_error(str(error))}")
    ended.put(JitLine(name=module.name, seconds=round(time.monotonic() - started, 3), error=problem))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
