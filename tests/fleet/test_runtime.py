"""A Ray of our own that does not start."""

import pytest
import ray

from rayprep.fleet.runtime import RayFolder, local_ray
from rayprep.model.errors import ErrorType, HostUnfit


def test_a_start_that_takes_too_long_is_rays_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        # As ray.init does after 30 s without its raylet; a real one would take these 30 s.
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with RayFolder() as folder, pytest.raises(HostUnfit) as raised, local_ray(folder):
        pytest.fail("it has not started")
    assert raised.value.error_type is ErrorType.RAY_UNAVAILABLE
    assert raised.value.message == "Ray does not start: The current node timed out during startup."
