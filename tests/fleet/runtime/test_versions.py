"""Which driver fits which cluster."""

import pytest

from rayprep.fleet.runtime.versions import RayVersions

CLUSTER = RayVersions(ray_version="2.60.0", python_version="3.11.7")


@pytest.mark.parametrize(
    ("ray", "python", "to_the_patch", "to_the_minor"),
    [
        ("2.60.0", "3.11.7", True, True),
        ("2.60.0", "3.11.9", False, True),
        ("2.60.0", "3.12.7", False, False),
        ("2.55.1", "3.11.7", False, False),
    ],
)
def test_ray_is_the_same_and_python_as_far_as_asked(
    ray: str, python: str, to_the_patch: bool, to_the_minor: bool
) -> None:
    mine = RayVersions(ray_version=ray, python_version=python)
    assert mine.fits(CLUSTER) is to_the_patch
    assert mine.fits(CLUSTER, patch=False) is to_the_minor


def test_both_are_named() -> None:
    assert str(CLUSTER) == "Ray 2.60.0 on Python 3.11.7"
