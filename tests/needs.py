"""What a test needs of the machine, said once: a missing thing skips the test with its reason.

With RAYPREP_REQUIRE_ALL set, a missing thing is a failure instead: the machine was prepared to have them all.
"""

import functools
import importlib.metadata
import os
import shutil
import subprocess
from typing import NoReturn

import pytest

from tests.report.browser import browser


def _need(present: bool, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not present and not os.environ.get("RAYPREP_REQUIRE_ALL"), reason=reason)


def lacks(reason: str) -> NoReturn:
    """Skip the test that runs, or fail it, for what only a try can tell to be missing."""
    if os.environ.get("RAYPREP_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


def needs_tool(name: str) -> pytest.MarkDecorator:
    """Needs a program on PATH."""
    return _need(shutil.which(name) is not None, f"{name} is not installed")


def needs_browser() -> pytest.MarkDecorator:
    """Needs Chromium, under any of its names."""
    return _need(browser() is not None, "chromium is not installed")


def needs_torch() -> pytest.MarkDecorator:
    """Needs torch, and the C++ compiler that TorchInductor drives."""
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return _need(False, "torch is not installed")
    return needs_tool("g++")


@functools.cache
def namespaces_work() -> bool:
    done = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True)
    return done.returncode == 0


def needs_namespaces() -> pytest.MarkDecorator:
    """Needs user and mount namespaces, so that a test can mount without being root."""
    return _need(shutil.which("unshare") is not None and namespaces_work(), "unshare -rm is not allowed here")


def needs_hosts() -> pytest.MarkDecorator:
    """Needs to make hosts: network namespaces with addresses of their own."""
    present = all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")) and _hosts_work()
    return _need(present, "iproute2 or nsenter is missing, or network namespaces are not allowed here")


@functools.cache
def _hosts_work() -> bool:
    from tests.cluster.hosts import Hosts

    try:
        with Hosts("one"):
            return True
    except OSError:
        return False


def needs_fuse() -> pytest.MarkDecorator:
    """Needs bindfs and a /dev/fuse that this user may open."""
    present = shutil.which("bindfs") is not None and os.access("/dev/fuse", os.R_OK | os.W_OK)
    return _need(present, "bindfs or /dev/fuse is missing")


def needs_podman() -> pytest.MarkDecorator:
    """Needs to run containers as root: podman, its runtime, and the init of their image."""
    present = os.getuid() == 0 and all(shutil.which(tool) for tool in ("podman", "runc", "tini"))
    return _need(present, "podman, runc or tini is missing, or this is not root")


def needs_root(to: str = "give files to another user") -> pytest.MarkDecorator:
    """Needs to do what others may not."""
    return pytest.mark.skipif(os.getuid() != 0, reason=f"only root can {to}")
