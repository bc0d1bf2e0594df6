"""A stand-in for nvcc that compiles no GEMM: it notes how it was called, so that DeepGEMM lists its kernels at once.

    python -IS nvcc_recorder.py FOLDER NVCC ARGUMENTS...

What asks for the version, and the small kernels that only change a layout, go to the real compiler: DeepGEMM needs
their results to go on. Every other source gets a line of JSON (`cache.Recorded`) where its cubin should
be, which DeepGEMM then stores under the kernel's own name and fails to load. What the real compiler says when it
fails goes to FOLDER/failed. Once there is a file FOLDER/refuse, it compiles nothing at all and fails.

DeepGEMM 0.1 calls it as `cd FOLDER && NVCC kernel.cu -cubin -o OUT FLAGS...`, 0.2 with `--cubin --output-file OUT`, and
both as `NVCC --version`. It is started once a kernel, so it imports nothing of ours.
"""

import itertools
import json
import os
import re
import sys

_OUTPUT = ("-o", "--output-file")
_GEMM = re.compile(r"#include\s*<deep_gemm/impls/\w*gemm\w*\.cuh>")


def main(argv: list[str]) -> int:
    folder, nvcc, *arguments = argv
    source = next((each for each in arguments if each.endswith(".cu")), None)
    if source is None:
        os.execv(nvcc, [nvcc, *arguments])
    if os.path.exists(f"{folder}/refuse"):  # noqa: PTH110 - pathlib would double the start-up time
        print(f"rayprep: this kernel was not listed: {source!a}", file=sys.stderr)
        return 1
    if not _is_gemm(source):
        return _compile([nvcc, *arguments], f"{folder}/failed")
    output = next(value for flag, value in itertools.pairwise(arguments) if flag in _OUTPUT)
    with open(output, "w", encoding="utf-8") as out:  # noqa: PTH123
        json.dump({"recorded": arguments}, out)
    return 0


def _compile(command: list[str], failed: str) -> int:
    import subprocess

    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.buffer.write(done.stdout)
    if done.returncode != 0:
        with open(failed, "wb") as out:  # noqa: PTH123
            out.write(done.stdout)
    return done.returncode


def _is_gemm(source: str) -> bool:
    with open(source, encoding="utf-8") as file:  # noqa: PTH123
        return _GEMM.search(file.read()) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
