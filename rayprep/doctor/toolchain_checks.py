"""What compiles for the host: ninja, the C++ compiler, and the headers to build for Python."""

import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rayprep.doctor.bounded import run_bounded
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject
from rayprep.host import toolchain

_COMPILE_S = 10.0
_RUN_S = 5.0
_PROGRAM = """#include <vector>
int main() { return std::vector<int>(3, 14).size() == 3 ? 0 : 1; }
"""


def judge_ninja(path: str | None, answer: str | None, beside_python: str | None, *, needed: bool) -> Finding:
    """
    Args:
        answer: what `ninja --version` says; null where it fails.
        beside_python: a ninja in the interpreter's own folder, which need not be on PATH.
    """
    if path and answer:
        return ok("ninja", f"{answer} in {path}")
    bad = fail if needed else warn
    if path:
        return bad("ninja", f"{path} does not run", "pip install --force-reinstall ninja")
    if not needed:
        return ok("ninja", "none, which the CPU stage does not need")
    remedy = f"put {Path(beside_python).parent} on PATH" if beside_python else "pip install ninja"
    return fail("ninja", "not on PATH, and FlashInfer compiles with it", remedy)


def _ninja(subject: Subject) -> list[Finding]:
    path = shutil.which("ninja", path=subject.environ.get("PATH"))
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    answer = None
    if path:
        ran = run_bounded([path, "--version"], subject.environ, _RUN_S)
        answer = ran.gist if ran.status == 0 else None
    return [judge_ninja(path, answer, beside, needed=subject.wants_gpu)]


def _cxx(subject: Subject) -> list[Finding]:
    check = "C++ compiler"
    command = toolchain.find_cxx(subject.environ)
    if command is None:
        named = subject.environ.get("CXX")
        return [fail(check, f"none: {named or 'g++'} is not on PATH", "apt-get install g++, or set CXX to one")]
    try:
        _compile_and_run(command, subject.environ)
    except OSError as error:
        remedy = "apt-get install g++ libc6-dev, or set CXX to one that works (and TMPDIR, where that is the trouble)"
        return [fail(check, f"{' '.join(command)}: {error}", remedy)]
    # Asked only now: one that compiles answers.
    version = toolchain.cxx_version(subject.environ) or f"{' '.join(command)}, which does not say its version"
    return [ok(check, f"{version}, compiles and runs")]


def _compile_and_run(command: list[str], environ: Mapping[str, str]) -> None:
    """
    Raises:
        OSError: says which of the two failed, and how.
    """
    with tempfile.TemporaryDirectory(prefix="rayprep-doctor-") as folder:
        source, program = Path(folder) / "main.cpp", Path(folder) / "main"
        source.write_text(_PROGRAM, encoding="ascii")
        # C++17 is what torch's and FlashInfer's headers need at the least.
        build = [*command, "-std=c++17", str(source), "-o", str(program)]
        # A compiler that is killed leaves its own temporary files: they are to go with the folder.
        built = run_bounded(build, {**environ, "TMPDIR": folder}, _COMPILE_S, Path(folder))
        if built.status != 0 or not program.is_file():
            raise OSError(f"does not compile a program of three lines: {built.gist}")
        try:
            ran = run_bounded([str(program)], environ, _RUN_S, Path(folder))
        except OSError as error:
            raise OSError(f"what it compiles in {folder} does not run: {error.strerror or error}") from None
        if ran.status != 0:
            raise OSError(f"what it compiles ends with {ran.status}: {ran.gist}")


def _python_headers(_: Subject) -> list[Finding]:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.is_file():
        return [ok("Python headers", str(header.parent))]
    version = toolchain.python_minor()
    remedy = f"apt-get install python{version}-dev, or use a Python that comes with them"
    return [fail("Python headers", f"no {header}: Triton and TorchInductor compile against it", remedy)]


CHECKS: Checks = {"ninja": _ninja, "C++ compiler": _cxx, "Python headers": _python_headers}
