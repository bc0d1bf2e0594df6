"""Lines of a server's log, and what kernel libraries say of a compile: rayprep's expressions, tried on the sources."""

import re

from rayprep.sglang import death, failure_signs, failures, log, moe_config_lines
from rayprep.stages.deep_gemm.child import _COMPILE_FAILED as _FAILED
from scripts.upstream.checks import BAR, Holds, Says
from scripts.upstream.contract import DEEP_GEMM, DEEP_GEMM_LOOP, DEEP_JIT_SINCE, FLASHINFER, Contract, rows

_RUNNER = ("sglang/srt/model_executor/*.py",)
_PREFILL = ("sglang/srt/model_executor/runner/prefill_cuda_graph_runner.py",)
_ENTRY = ("sglang/srt/entrypoints/*.py",)
_ENGINE = ("sglang/srt/entrypoints/engine.py",)
_MOE = ("sglang/srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py",)
_C = ("deep_gemm/_C.so",)
_UNNAMED = "the cause of a server's death is told by its last exception alone"
_NO_PROGRESS = "no progress is shown meanwhile"
_NO_ARGS = "the server is asked for batches up to 256, and what it resolved is not shown"
_NO_BATCHES = "the batches that decode captures are not known: none is found missing"
_UNSEEN = "a kernel that DeepGEMM compiled is named by its files alone"
_LAST_LINE = "a compile of DeepGEMM's that failed is told by its last line alone"
_PARSED = "batches are chosen by rayprep's defaults, and a prompt may be longer than a prefill chunk"


def _plain(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))


def _line(text: str, *where: str) -> Says:
    return Says(_plain(text), where)


LOG: tuple[Contract, ...] = (
    *rows("no server is seen to be ready: the stage ends by its time-out", _line(failures.READY, *_ENTRY)),
    *rows("products that no plan had are not named", Says(log._GEMM, DEEP_GEMM_LOOP)),
    *rows(_NO_PROGRESS, Says(log._GEMM_BAR, DEEP_GEMM_LOOP, tail=BAR)),
    *rows(
        _NO_PROGRESS,
        Says(death.CAPTURE_BAR, ("sglang/srt/model_executor/runner/decode_cuda_graph_runner.py",), tail=BAR),
    ),
    *rows(_NO_PROGRESS, Holds('f"Capturing num tokens ({', _PREFILL), until="0.5.20", replaced=True),
    *rows(_NO_PROGRESS, Holds('f"Capturing prefill shape ({', _PREFILL), since="0.5.21"),
    *rows(
        _NO_PROGRESS,
        Says(log._SHARDS, ("sglang/srt/model_loader/*.py",), tail=BAR),
        _line("Load weight begin", *_RUNNER),
    ),
    *rows("short memory is seen once the server has died of it", _line(log._POOL_END, "sglang/srt/mem_cache/*.py")),
    *rows(
        "a server that died for want of memory is not started once more with less",
        Says(log._OUT_OF_MEMORY, _RUNNER),
        _line(failure_signs.MORE_MEMORY, *_RUNNER),
    ),
    *rows(
        "a server that went without prefill graphs is taken as it is",
        _line(log._NO_PREFILL_GRAPH, *_RUNNER),
        until="0.5.17",
    ),
    *rows("a model that SGLang does not compile counts as compiled", _line(log._LEFT_OUT, *_RUNNER)),
    *rows(
        _NO_ARGS,
        # The record's own words, which begin as a dataclass's do.
        Holds('logger.info(f"{server_args=}")', _ENGINE),
        until="0.5.18",
        replaced=True,
    ),
    # What goes into it is a dict: `ServerArgs.resolved_dict`.
    *rows(_NO_ARGS, Holds('logger.info(f"server_args={', _ENGINE), since="0.5.19"),
    *rows(
        _PARSED,
        *(Says(pattern, ("sglang/srt/managers/scheduler.py",)) for pattern in log._LIMITS.values()),
    ),
    *rows(
        _NO_BATCHES,
        Says(log._DECODE_BATCHES, _RUNNER, fillings=("target decode", "CUDA graph", "", "1", "[1, 2]")),
        until="0.5.21",
        replaced=True,
    ),
    *rows(
        _NO_BATCHES,
        Says(log._DECODE_BATCHES, _RUNNER, fillings=("target decode", "CUDA graph", "[1, 2]", "1")),
        since="0.5.22",
    ),
    *rows(
        _UNNAMED,
        Says(death._CAPTURE_EDGE, _RUNNER, fillings=("decode", "CUDA graph")),
        Says(death._CAPTURE_FAILED, _RUNNER),
    ),
    *rows(
        _UNNAMED,
        _line(death._HIT, "sglang/srt/managers/scheduler.py"),
        _line("watchdog timeout", "sglang/srt/utils/watchdog*.py"),
    ),
    *rows(_UNNAMED, Says(re.compile(r"scheduler died during initialization"), _ENTRY)),
    *rows(
        "a tuned config is not seen to be in use: `verify_log_missing`",
        Says(moe_config_lines._USED, _MOE, fillings=("/configs/a.json",)),
        Says(moe_config_lines._MISSED, _MOE, fillings=("/configs/a.json",)),
    ),
    *rows(
        "a module of SGLang's that was built again is named by its files alone",
        Says(log._COMPILED[2][0], ("sglang/jit_kernel/*.py", "sglang/kernels/jit/*.py")),
    ),
    *rows(
        _UNSEEN,
        Holds("Running NVCC command: ", _C),
        Holds("Compiling JIT runtime with NVRTC options", _C),
        package=DEEP_GEMM,
        until="0.5.19",
        replaced=True,
    ),
    *rows(_UNSEEN, Holds("Running command: ", _C), package=DEEP_GEMM, since=DEEP_JIT_SINCE),
    *rows(
        _LAST_LINE,
        *(Holds(words, _C) for words in (_FAILED[0], "NVCC version should be", "Corrupted JIT cache")),
        package=DEEP_GEMM,
        until="0.5.19",
        replaced=True,
    ),
    *rows(
        _LAST_LINE,
        *(Holds(words, _C) for words in (_FAILED[1], "missing CUDA CUBIN", "NVCC did not produce a valid")),
        *(Holds(words, _C) for words in ("NVCC version must be at least", "NVCC compiler is not executable")),
        *(Holds(words, _C) for words in ("failed to parse NVCC version", "not home_path.empty()")),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
    *rows(
        "a compile of FlashInfer's that failed is told by its last line alone",
        _line("Ninja build failed", "flashinfer/jit/cpp_ext.py"),
        package=FLASHINFER,
    ),
)
