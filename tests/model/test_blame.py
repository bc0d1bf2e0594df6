"""What a server is thought to have died of: the likeliest first, and nothing where it was none of ours."""

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.blame import MOST, Blame, blames
from rayprep.model.caches import CacheName
from rayprep.sglang.death import Death

ROOT = "/data/profiles"
CONFIG = "moe_configs/configs/triton_3_6_0/E=8,N=14336,device_name=NVIDIA_H200.json"
OF_CONFIG = Blame(cache=CacheName.MOE_CONFIGS, paths=(CONFIG,))
MOE_FILE = "/site/sglang/srt/layers/moe/moe_runner/triton_utils/fused_moe.py"
TRITON_FILE = "/site/triton/compiler/compiler.py"
OUT = "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 262144, Hardware limit: 232448."
INVALID = "RuntimeError: Triton Error [CUDA]: device kernel image is invalid"


def blamed(
    exception: str,
    *files: str,
    kernel: str = "",
    mentions: tuple[str, ...] = (),
    capturing: bool = False,
    configs: tuple[str, ...] = (CONFIG,),
    kind: ErrorType = ErrorType.SERVER_START_FAILED,
) -> tuple[Blame, ...]:
    death = Death(exception=exception, kernel=kernel, files=files, mentions=mentions, while_capturing=capturing)
    return blames(kind, death, configs, (ROOT, "/mnt/nvme/profiles"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # As on an H200: the config's kernel asks for too much.
        (blamed(OUT, MOE_FILE, TRITON_FILE, kernel="fused_moe_kernel", capturing=True), (OF_CONFIG,)),
        (blamed(OUT, MOE_FILE, TRITON_FILE), (OF_CONFIG,)),
        # The kernel is loaded and cannot be: its entry, and then its config.
        (
            blamed(INVALID, MOE_FILE, TRITON_FILE, kernel="fused_moe_kernel"),
            (Blame(cache=CacheName.TRITON, kernel="fused_moe_kernel"), OF_CONFIG),
        ),
        (
            blamed("RuntimeError: CUDA error: an illegal memory access was encountered", MOE_FILE),
            (OF_CONFIG,),
        ),
        (blamed("RuntimeError: whatever", "/site/sglang/srt/models/mixtral.py", capturing=True), (OF_CONFIG,)),
        (blamed("", capturing=True), (OF_CONFIG,)),
        # torch.compile fails while graphs are captured, which is its own doing.
        (blamed("AssertionError", "/site/torch/_dynamo/symbolic_convert.py", capturing=True), ()),
        (blamed("AssertionError", "/site/torch/_inductor/codecache.py"), (Blame(cache=CacheName.TORCHINDUCTOR),)),
        (
            blamed("OSError: x: file too short", mentions=("/mnt/nvme/profiles/flashinfer/.cache/a/b/c/d/norm/x.so",)),
            (Blame(cache=CacheName.FLASHINFER, paths=("flashinfer/.cache/a/b/c/d/norm/x.so",)),),
        ),
        (
            blamed("SyntaxError: x", "/site/torch/_inductor/codecache.py", f"{ROOT}/torchinductor/ab/cab.py"),
            (
                Blame(cache=CacheName.TORCHINDUCTOR, paths=("torchinductor/ab/cab.py",)),
                Blame(cache=CacheName.TORCHINDUCTOR),
            ),
        ),
        (blamed("RuntimeError: x", "/site/flashinfer/jit/core.py"), (Blame(cache=CacheName.FLASHINFER),)),
        (blamed("RuntimeError: x", "/site/sglang/jit_kernel/utils.py"), (Blame(cache=CacheName.SGLANG_JIT),)),
        # Machine code was at fault: of the library that called it, or of whatever is in the caches.
        (
            blamed("Fatal Python error: Segmentation fault", "/site/flashinfer/jit/core.py"),
            (Blame(cache=CacheName.FLASHINFER), Blame(cache=None)),
        ),
        (
            blamed("RuntimeError: Rank 0 scheduler died during initialization (exit code: -11).", "/site/sglang/x.py"),
            (Blame(cache=None),),
        ),
        (blamed("RuntimeError: Rank 0 scheduler died during initialization (exit code: 1).", "/site/sglang/x.py"), ()),
        (blamed("RuntimeError: x", "/site/deep_gemm/__init__.py"), (Blame(cache=CacheName.DEEP_GEMM),)),
        # What a library refuses, or a process that was lost, or a compiler.
        (blamed("ValueError: Unsupported head_dim: 96", "/site/flashinfer/prefill.py"), ()),
        (blamed("torch._inductor.exc.InductorError: LoweringException: x", "/site/torch/_inductor/graph.py"), ()),
        (blamed("torch.distributed.DistBackendError: NCCL error", "/site/torch/distributed/x.py", capturing=True), ()),
        (blamed("ModuleNotFoundError: No module named 'x'", "/site/flashinfer/jit/core.py", capturing=True), ()),
        (
            blamed(
                "RuntimeError: Failed to find C compiler",
                TRITON_FILE,
                capturing=True,
                kind=ErrorType.TOOLCHAIN_MISMATCH,
            ),
            (),
        ),
        (
            blamed(
                "ImportError: x.so: cannot open shared object file",
                mentions=(f"{ROOT}/sglang_jit/module/x.so",),
                kind=ErrorType.TOOLCHAIN_MISMATCH,
            ),
            (Blame(cache=CacheName.SGLANG_JIT, paths=("sglang_jit/module/x.so",)),),
        ),
        # None of ours: no config in use, a file of somebody's, a name that only begins as the root does.
        (blamed(OUT, MOE_FILE, kernel="fused_moe_kernel", configs=()), ()),
        (blamed("RuntimeError: x", "/site/sglang/srt/models/mixtral.py"), ()),
        (blamed("OSError: x", mentions=("/data/profiles-of-another/triton/a/b.cubin", "/models/x.safetensors")), ()),
        (blamed("", configs=()), ()),
    ],
)
def test_the_likeliest_comes_first(found: tuple[Blame, ...], expected: tuple[Blame, ...]) -> None:
    assert found == expected


@pytest.mark.parametrize(
    "kind", [ErrorType.OOM_DURING_WARMUP, ErrorType.INSUFFICIENT_DISK, ErrorType.PERMISSIONS_UNEXPECTED]
)
def test_no_cache_is_to_blame_for_what_a_host_lacks(kind: ErrorType) -> None:
    assert blamed("OSError: [Errno 28] No space left", mentions=(f"{ROOT}/triton/a/b.cubin",), kind=kind) == ()


def test_not_everything_is_tried() -> None:
    mentions = tuple(f"{ROOT}/sglang_jit/module{number}/x.so" for number in range(9))
    assert len(blamed("OSError: x", mentions=mentions)) == MOST


@pytest.mark.parametrize(("signal", "expected"), [(11, (Blame(cache=None),)), (9, ()), (None, ())])
def test_of_a_server_that_said_nothing_its_signal_tells(signal: int | None, expected: tuple[Blame, ...]) -> None:
    """SIGKILL is somebody's, or SGLang's own for itself."""
    assert blames(ErrorType.SERVER_START_FAILED, None, (CONFIG,), (ROOT,), signal) == expected
