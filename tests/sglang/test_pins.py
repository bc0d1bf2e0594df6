"""The sets of libraries that go together: what is compared, what is installed, and what the files for pip say."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from rayprep.sglang.pins import CUDA, PINS, fits, requirement
from rayprep.sglang.releases import KNOWN, NEWEST

ROOT = Path(__file__).parents[2]
EXTRA = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]["sglang"]
]


@pytest.mark.parametrize("release", KNOWN)
def test_the_constraints_of_a_release_are_its_pins(release: str) -> None:
    lines = (ROOT / f"scripts/constraints/sglang-{release}.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"sglang=={release}", *(f"{library}=={pin}" for library, pin in PINS[release].items())]


@pytest.mark.parametrize("release", KNOWN)
def test_the_extra_contradicts_the_constraints_of_no_release(release: str) -> None:
    pins = {"sglang": release, **PINS[release]}
    for wanted in EXTRA:
        assert wanted.name not in pins or wanted.specifier.contains(pins[wanted.name])


def test_the_extra_is_of_the_newest_release_and_of_one_cuda() -> None:
    (sglang,) = [wanted for wanted in EXTRA if wanted.name == "sglang"]
    newer = [NEWEST + ".post1", "0.5.24", "0.6"]
    assert max(filter(sglang.specifier.contains, [*KNOWN, *newer]), key=Version) == NEWEST
    nvidia = {str(wanted.specifier) for wanted in EXTRA if wanted.name.startswith("nvidia-")}
    assert nvidia == {f"=={CUDA}.*"}


@pytest.mark.parametrize(
    ("version", "pin", "fitting"),
    [
        ("2.11.0", "2.11.0", True),
        ("2.11", "2.11.0", False),
        ("3.8.0", "3.8.*", True),
        ("3.8", "3.8.*", True),
        ("3.80.1", "3.8.*", False),
        ("", "3.8.*", False),
    ],
)
def test_a_pin_may_leave_its_last_number_open(version: str, pin: str, *, fitting: bool) -> None:
    assert fits(version, pin) is fitting


def test_a_shell_leaves_the_star_to_pip() -> None:
    assert requirement("torch", "2.14.1") == "torch==2.14.1"
    assert requirement("triton", "3.8.*") == "'triton==3.8.*'"
