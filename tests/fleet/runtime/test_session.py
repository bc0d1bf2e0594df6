"""A Ray of our own that does not start."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import ray

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.fleet.runtime.session import RayFolder, local_ray
from rayprep.host.interrupts import Interrupts
from tests.processes import alive, family, named, wait_for


def test_a_start_that_takes_too_long_is_rays_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        # As ray.init does after 30 s without its raylet; a real one would take these 30 s.
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with RayFolder() as folder, pytest.raises(HostUnfit) as raised, local_ray(folder.sessions):
        pytest.fail("it has not started")
    assert raised.value.error_type is ErrorType.RAY_UNAVAILABLE
    assert raised.value.message == "Ray does not start: The current node timed out during startup."


def test_sigterm_while_ray_starts_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise SystemExit(signal.SIGTERM)  # as the handler does that ray.init puts in place

    monkeypatch.setattr(ray, "init", init)
    with RayFolder() as folder, pytest.raises(KeyboardInterrupt), local_ray(folder.sessions):
        pytest.fail("it has not started")


def test_an_interrupt_while_the_folder_is_made_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    touch = Path.touch

    def interrupted(path: Path, mode: int = 0o666) -> None:
        touch(path, mode)
        made.append(path)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Path, "touch", interrupted)
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        RayFolder()
    assert not made[0].parent.exists()


def test_the_folder_goes_without_its_sweeper_too() -> None:
    with RayFolder() as folder:
        process = subprocess.Popen(["sleep", "600"], env=folder.environment())
        (sweeper,) = named(family(os.getpid()), "rayprep.host.sweeper", str(folder.path))
        sweeper.kill()
        wait_for(lambda: not alive([sweeper]), "the sweeper to end")
    assert not folder.path.exists()
    assert process.wait(10) < 0
