"""What Ray's processes inherit from a run."""

import os

import pytest

from rayprep.cli.process import set_ray_environment


def test_ray_gets_its_own_token_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RAY_AUTH_TOKEN": "ray's", "HF_TOKEN": "x", "http_proxy": "u:hunter2@p:1", "https_proxy": "p:1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back
    set_ray_environment({"RAY_AUTH_MODE": "token"})
    left = {name: os.environ.get(name) for name in (*given, "RAY_AUTH_MODE")}
    assert left == {
        "RAY_AUTH_TOKEN": "ray's",
        "HF_TOKEN": None,
        "http_proxy": None,
        "https_proxy": "p:1",
        "RAY_AUTH_MODE": "token",
    }
