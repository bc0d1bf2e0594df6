"""What a failed compile is taken for, and the one line that is said of it."""

import errno

import pytest

from rayprep.base.errors import ErrorType
from rayprep.stages.child.failures import failure
from rayprep.stages.flashinfer.child import CalledOtherwise

FULL, MEMORY, TOOLCHAIN = ErrorType.INSUFFICIENT_DISK, ErrorType.OOM_DURING_WARMUP, ErrorType.TOOLCHAIN_MISMATCH
NINJA = """Ninja build failed. Ninja output:
ninja: Entering directory `/profiles/flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm'
[1/3] /usr/local/cuda/bin/nvcc  --generate-dependencies-with-compile -MF norm.cuda.o.d -c norm.cu -o norm.cuda.o
FAILED: [code=1] /profiles/flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm/norm.cuda.o
/usr/local/cuda/bin/nvcc  --generate-dependencies-with-compile -MF norm.cuda.o.d -c norm.cu -o norm.cuda.o
{}
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize(
    ("said", "error_type"),
    [
        ('norm.cu(7): error: identifier "x" is undefined', "compile_failed"),
        ("norm.cu:1:10: fatal error: cuda_runtime.h: No such file or directory", TOOLCHAIN),
        (
            'cuda_toolkit.h:41:4: error: #error "CUDA compiler and CUDA toolkit headers are incompatible"',
            TOOLCHAIN,
        ),
        ("nvcc fatal : Unsupported gpu architecture 'compute_90a'", TOOLCHAIN),
        ("/usr/bin/ld: cannot find -lcudart: No such file or directory", TOOLCHAIN),
        ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", TOOLCHAIN),
        ("/bin/sh: line 1: c++: command not found", TOOLCHAIN),
        ("fatal error: error writing to /tmp/x.s: No space left on device", FULL),
        ("Killed", MEMORY),
        ("nvcc error : 'cicc' died due to signal 9 (Kill signal)", MEMORY),
    ],
)
def test_the_first_line_that_names_an_error_is_said(said: str, error_type: str) -> None:
    found = failure(RuntimeError(NINJA.format(said)))
    assert (found.error_type, found.message) == (error_type, said)


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "ninja"), TOOLCHAIN),
        (ModuleNotFoundError("No module named 'flashinfer'"), TOOLCHAIN),
        (
            RuntimeError("Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"),
            TOOLCHAIN,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (MemoryError(), MEMORY),
        (CalledOtherwise("TypeError: gen_norm_module() takes 0 positional arguments but 1 was given"), "unsupported"),
        (RuntimeError(""), "compile_failed"),
    ],
)
def test_what_is_no_compilers_word_is_told_by_its_type(error: Exception, error_type: str) -> None:
    found = failure(error)
    assert found.error_type == error_type
    assert len(found.message.splitlines()) == 1
    assert len(found.message) <= 300
