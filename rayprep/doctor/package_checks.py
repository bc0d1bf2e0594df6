"""Python and the installed libraries: are they a set that has been tried together?"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import rayprep
from rayprep.doctor.findings import Finding, fail, ok, warn
from rayprep.doctor.subject import Checks, Subject
from rayprep.host import toolchain
from rayprep.sglang.pins import LIBRARIES, PINS, fits, requirement
from rayprep.sglang.releases import warning_of_release

Versions = Mapping[str, str | None]
"""Distribution -> installed version, null where it is not installed."""

_PYTHONS = ((3, 11), (3, 13))
"""From what rayprep needs to the newest that sglang 0.5.16 to 0.5.23 installs on."""
_RAYS = ((2, 55), (3, 0))
"""At the least, and below; rayprep's own requirement."""
_TORCH = (2, 11)
"""The oldest torch that the CPU stage takes."""


def _release(version: str) -> tuple[int, ...]:
    """`2.11.0+cu130` -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    if match is None:
        raise ValueError(f"{version!r} is no version")
    return tuple(int(part) for part in match[0].split("."))


def _public(version: str) -> str:
    """Without the local part, which says how a wheel was built."""
    return version.partition("+")[0]


def judge_sglang(versions: Versions, *, needed: bool) -> list[Finding]:
    """sglang and what it compiles with."""
    check, sglang = "sglang", versions["sglang"]
    if sglang is None:
        if not needed:
            return [ok(check, "not installed, which the CPU stage does not need")]
        return [fail(check, "not installed, and the GPU stages are built with it", "pip install 'rayprep[sglang]'")]
    pins = PINS.get(_public(sglang))
    if pins is None:
        message = warning_of_release(sglang) or f"{sglang}, which was not tried"
        return [warn(check, message, f"install one of sglang {', '.join(PINS)}, or try it on one host first")]
    absent = [name for name in pins if versions[name] is None]
    if absent:
        bad = fail if needed else warn
        return [bad(check, f"{sglang} without {', '.join(absent)}", _install(pins, absent))]
    other = [name for name, pin in pins.items() if not fits(_public(versions[name] or ""), pin)]
    if other:
        found = ", ".join(f"{name} {versions[name]} (pinned: {pins[name]})" for name in other)
        return [warn(check, f"{sglang} with {found}", _install(pins, other))]
    return [ok(check, f"{sglang} with " + ", ".join(f"{name} {versions[name]}" for name in pins))]


def _install(pins: Mapping[str, str], names: list[str]) -> str:
    return "pip install " + " ".join(requirement(name, pins[name]) for name in names)


def judge_deep_gemm(versions: Versions) -> list[Finding]:
    """`deep-gemm` is somebody's upload of an old tree without CUTLASS; it provides the same module."""
    wrong = versions["deep-gemm"]
    if wrong is None:
        return []
    remedy = "pip uninstall -y deep-gemm && pip install --force-reinstall --no-deps sgl-deep-gemm"
    pins = PINS.get(_public(versions["sglang"] or ""))
    pinned = f"{remedy}=={pins['sgl-deep-gemm']}" if pins else remedy
    return [fail("deep-gemm", f"{wrong} is installed, which sglang cannot use in place of sgl-deep-gemm", pinned)]


def judge_torch(version: str | None, cuda: str | None, *, needs_cuda: bool) -> Finding:
    """
    Args:
        cuda: what torch was built for; null for a CPU build.
    """
    check = "torch"
    if version is None:
        return fail(check, "not installed", f"pip install 'rayprep[{'sglang' if needs_cuda else 'cpu'}]'")
    if needs_cuda and cuda is None:
        return fail(
            check, f"{version} is built without CUDA", "pip uninstall -y torch && pip install 'rayprep[sglang]'"
        )
    built = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    if _release(version) < _TORCH:
        return warn(check, f"{built}, is older than any that was tried", "pip install 'torch>=2.11,<3'")
    return ok(check, built)


def judge_ray(version: str | None) -> Finding:
    remedy = "pip install 'ray[default]>=2.55,<3' (the same version on every host)"
    if version is None:
        return fail("ray", "not installed", remedy)
    if not _RAYS[0] <= _release(version) < _RAYS[1]:
        return fail("ray", f"{version}, and rayprep needs 2.55 or newer, below 3", remedy)
    return ok("ray", version)


def judge_python(version: tuple[int, int, int]) -> Finding:
    found = ".".join(str(part) for part in version)
    oldest, newest = _PYTHONS
    if oldest <= version[:2] <= newest:
        return ok("Python", f"{found} in {sys.prefix}")
    return warn("Python", f"{found} was not tried", "use Python 3.11 to 3.13, on which sglang installs")


@dataclass(frozen=True)
class Install:
    """rayprep itself: the code that runs, and what the package manager thinks is installed."""

    code: str
    distribution: str | None
    folder: str


def judge_install(install: Install) -> Finding:
    found = f"{install.code} in {install.folder}"
    if install.distribution is None:
        return ok("rayprep", f"{found}, run from its sources")
    if install.distribution != install.code:
        remedy = "pip install it again, or take the other copy off PYTHONPATH; all hosts must run one version"
        return warn("rayprep", f"{found}, but {install.distribution} is what is installed", remedy)
    return ok("rayprep", found)


def _rayprep(_: Subject) -> list[Finding]:
    version = toolchain.package_version("rayprep")
    return [judge_install(Install(rayprep.__version__, version, next(iter(rayprep.__path__))))]


def _python(_: Subject) -> list[Finding]:
    return [judge_python((sys.version_info.major, sys.version_info.minor, sys.version_info.micro))]


def _libraries(subject: Subject) -> list[Finding]:
    versions = {name: toolchain.package_version(name) for name in ("sglang", *LIBRARIES, "deep-gemm")}
    torch = judge_torch(versions["torch"], toolchain.torch_cuda_version(), needs_cuda=subject.wants_gpu)
    return [torch, *judge_sglang(versions, needed=subject.wants_gpu), *judge_deep_gemm(versions)]


def _ray(_: Subject) -> list[Finding]:
    return [judge_ray(toolchain.package_version("ray"))]


CHECKS: Checks = {"rayprep": _rayprep, "Python": _python, "libraries": _libraries, "ray": _ray}
