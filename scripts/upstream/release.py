"""The wheels of one release of SGLang and of the libraries that it pins, fetched by pip and kept."""

import gc
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rayprep.base.errors import BadRequest, HostUnfit
from scripts.upstream.contract import DEEP_GEMM, FLASHINFER, SGLANG, Contract
from scripts.upstream.wheel import Wheel

_VERSION = re.compile(r"\d{1,4}(\.\d{1,6}){1,3}((a|b|rc|\.post|\.dev)\d{1,8})?")
_PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")
_LONGEST_S = 600
"""Of one download: the largest wheel is 65 MB."""


@dataclass(frozen=True)
class Release:
    """One release, with a wheel for each of its packages."""

    version: str
    wheels: dict[str, Wheel]
    pins: dict[str, str]
    """The versions of the others that its METADATA asks for."""

    def problems(self, contracts: Iterable[Contract]) -> list[tuple[Contract, str]]:
        """Return each row with why it does not hold; empty where it does.

        Raises:
            HostUnfit: the release is written for a newer Python than this one.
        """
        with _no_collection():
            problems = [(contract, self._problem(contract)) for contract in contracts]
            for wheel in self.wheels.values():
                wheel.forget()
        return problems

    def _problem(self, contract: Contract) -> str:
        try:
            return contract.check.problem(self.wheels[contract.package])
        except SyntaxError as error:
            what = f"{contract.package} of sglang {self.version} cannot be read by Python {sys.version.split()[0]}"
            raise HostUnfit(f"{what}: {error}", hint="set PYTHON to a newer one") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from going through the trees of all files, which takes longer than their parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def cache_folder() -> Path:
    """Return where the wheels are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayprep" / "wheels"


def fetch_release(version: str, cache: Path | None = None) -> Release:
    """Return a release, what is not in the cache yet downloaded.

    Raises:
        BadRequest: there is no such version.
        HostUnfit: pip reaches no index, or the cache cannot be written.
    """
    if not _VERSION.fullmatch(version):
        raise BadRequest(f"{version!r} is no version of SGLang", hint="give one such as 0.5.23")
    folder = cache or cache_folder()
    sglang = _wheel(SGLANG, version, folder)
    pins = {package: _pin(sglang, package, version) for package in (FLASHINFER, DEEP_GEMM)}
    others = {package: _wheel(package, pin, folder) for package, pin in pins.items()}
    return Release(version, {SGLANG: sglang, **others}, pins)


def _pin(wheel: Wheel, package: str, version: str) -> str:
    """Return the version of a package that SGLang's wheel asks for."""
    name = package.replace("-", "[-_]")
    found = re.search(rf"^Requires-Dist: {name}(?:\[\w+\])? ?\(?==([\w.]+)", wheel.metadata(), re.M)
    if found is None:
        raise BadRequest(f"sglang {version} pins no {package}", hint="give a release from 0.5.16 on")
    return found[1]


def _wheel(package: str, version: str, folder: Path) -> Wheel:
    """Return the kept wheel, downloaded where there is none. Two processes that want one download it once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{package}-{version}.lock", timeout=_LONGEST_S):
            kept = _kept(package, version, folder) or _download(package, version, folder)
        return Wheel(kept)
    except (OSError, zipfile.BadZipFile) as error:
        hint = "set XDG_CACHE_HOME to a folder that can be written"
        raise HostUnfit(f"the wheel of {package} {version} cannot be kept in {folder}: {error}", hint=hint) from None


def _kept(package: str, version: str, folder: Path) -> Path | None:
    whole = (path for path in folder.glob(f"{package.replace('-', '_')}-{version}-*.whl") if zipfile.is_zipfile(path))
    return next(whole, None)


def _download(package: str, version: str, folder: Path) -> Path:
    """Have pip download a wheel beside the others, and move it to them once it is whole."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", *platforms, "--dest", new, f"{package}=={version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
        except subprocess.TimeoutExpired:
            raise HostUnfit(f"pip did not have {package} {version} after {_LONGEST_S} s", hint="try again") from None
        wheels = list(Path(new).glob("*.whl"))
        if done.returncode or not wheels:
            raise _refusal(package, version, done.stderr)
        return wheels[0].rename(folder / wheels[0].name)


def _refusal(package: str, version: str, said: str) -> BadRequest | HostUnfit:
    """Return what pip's words mean: an index that knows other versions has been reached."""
    if re.search(r"\(from versions: (?!none\))", said):
        return BadRequest(f"there is no {package} {version} for Linux on x86-64", hint="give a version that pip finds")
    errors = [line.strip() for line in said.splitlines() if "ERROR" in line or "No module named" in line]
    why = errors[0] if errors else "it says nothing"
    return HostUnfit(f"pip cannot download {package} {version}: {why}", hint="check pip's index and the network")
