"""What a failed compile is taken for, and the one line that is said of it."""

import errno

import pytest

from rayprep.stages.flashinfer_protocol import failure

NINJA = """Ninja build failed. Ninja output:
ninja: Entering directory `/profiles/flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm'
[1/3] /usr/local/cuda/bin/nvcc  --generate-dependencies-with-compile -MF norm.cuda.o.d -c norm.cu -o norm.cuda.o
FAILED: [code=1] /profiles/flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm/norm.cuda.o
/usr/local/cuda/bin/nvcc  --generate-dependencies-with-compile -MF norm.cuda.o.d -c norm.cu -o norm.cuda.o
{}
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('norm.cu(7): error: identifier "x" is undefined', "compile_failed"),
        ("norm.cu:1:10: fatal error: cuda_runtime.h: No such file or directory", "toolchain"),
        ('cuda_toolkit.h:41:4: error: #error "CUDA compiler and CUDA toolkit headers are incompatible"', "toolchain"),
        ("nvcc fatal : Unsupported gpu architecture 'compute_90a'", "toolchain"),
        ("/usr/bin/ld: cannot find -lcudart: No such file or directory", "toolchain"),
        ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", "toolchain"),
        ("/bin/sh: line 1: c++: command not found", "toolchain"),
        ("fatal error: error writing to /tmp/x.s: No space left on device", "no_space"),
        ("Killed", "out_of_memory"),
        ("nvcc error : 'cicc' died due to signal 9 (Kill signal)", "out_of_memory"),
    ],
)
def test_the_first_line_that_names_an_error_is_said(said: str, kind: str) -> None:
    found = failure(RuntimeError(NINJA.format(said)), "norm")
    assert (found.kind, found.message, found.module) == (kind, said, "norm")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "ninja"), "toolchain"),
        (ModuleNotFoundError("No module named 'flashinfer'"), "toolchain"),
        (RuntimeError("Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"), "toolchain"),
        (OSError(errno.ENOSPC, "No space left on device"), "no_space"),
        (MemoryError(), "out_of_memory"),
        (TypeError("gen_norm_module() takes 0 positional arguments but 1 was given"), "unsupported"),
        (RuntimeError(""), "compile_failed"),
    ],
)
def test_what_is_no_compilers_word_is_told_by_its_type(error: Exception, kind: str) -> None:
    found = failure(error, None)
    assert found.kind == kind
    assert len(found.message.splitlines()) == 1
    assert len(found.message) <= 300
