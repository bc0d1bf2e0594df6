"""Starting Ray on this host alone, or joining a cluster that is there."""

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.records import read_tolerant
from rayprep.fleet.runtime.versions import RayVersions
from rayprep.host.environment import passed_on
from rayprep.host.files import read_text
from rayprep.host.sweeper import remove_own, sweep

NAMESPACE = "rayprep"
OBJECT_STORE_BYTES = 80 << 20
"""The least that Ray takes. Only events and results go through it."""
MEMORY_BYTES = 1 << 30
"""What Ray may hand out; it would otherwise take its share of all that the host has."""
CONNECT_TIMEOUT_S = 5.0
KNOCK_S = 2.0
CLUSTER_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Of a driver that joins a cluster."""
_MARK = "RAY_AUTH_TOKEN_PATH"
"""In the environment of each process of a local Ray, with a value of its own."""
_SWEEP_DEADLINE_S = 30.0
_ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_metrics_collection": "0",
    # No ports: it is noted in Ray's logs that their endpoints do not start.
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Has a local Ray listen on 127.0.0.1 alone, and show nobody its metrics, for which no token is asked.

Ray gives its host that address where it may not form a cluster, and whatever listens goes by its host's address. An
address that is given to `ray.init` does not do: it replaces 127.0.0.1 by that of a network interface.
Sources: ray/_private/services.py, `get_node_ip_address` and `resolve_ip_for_localhost`.
"""


class RayFolder:
    """A private folder for a local Ray: its sessions, and the token that keeps others on this host out of it.

    As a context manager it has a sweeper, which ends all of this Ray's processes and removes the folder when we leave,
    or die.
    """

    def __init__(self) -> None:
        # Not TMPDIR: the path of a socket has to fit into 107 bytes, of which Ray's names below `sessions` take 64.
        self.path = Path("/tmp", f"rayprep-{secrets.token_hex(6)}")
        self.token = self.path / "token"
        self.sessions = self.path / "ray"
        """Ray's own folder. It opens that to everybody, so that nobody else may enter the one above it.

        Source: ray/_common/utils.py, `try_to_create_directory`.
        """
        try:
            # First: the sweeper's command line tells everybody its name.
            self.path.mkdir(mode=0o700)
            self._sweeper = subprocess.Popen(
                # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
                [sys.executable, "-P", "-m", "rayprep.host.sweeper", _MARK, str(self.token), str(self.path)],
                stdin=subprocess.PIPE,
                start_new_session=True,
                env=passed_on(os.environ),
            )
        except BaseException:  # an interrupt in between would leave it for ever
            remove_own(str(self.path))
            raise
        try:
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32), encoding="ascii")
        except BaseException:
            self.__exit__()
            raise

    def environment(self) -> dict[str, str]:
        """What has to be in the environment before a local Ray starts."""
        return {
            "RAY_AUTH_MODE": "token",
            _MARK: str(self.token),
            # Ray renames its processes, which would overwrite the mark in their environment.
            "SPT_NOENV": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_worker_niceness": "0",
            # Ray would end the agent when the compilers fill the memory; the kernel's choice, the compiler, is better.
            "RAY_memory_monitor_refresh_ms": "0",
            **_ON_LOOPBACK,
        }

    def __enter__(self) -> "RayFolder":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._sweeper.stdin is not None
        self._sweeper.stdin.close()
        try:
            self._sweeper.wait(_SWEEP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._sweeper.kill()
            self._sweeper.wait()
        if self._sweeper.returncode:  # it was killed
            sweep(_MARK, str(self.token), str(self.path))


def kept_off_stdout() -> AbstractContextManager[object]:
    """Around a Ray whose driver's standard output is read by tools.

    Ray tells there of a worker that died, whatever its `log_to_driver` says; this has it on standard error.
    """
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def local_ray(sessions: Path) -> Iterator[None]:
    """A Ray of our own for as long as the block runs, in a process that has a `RayFolder`'s environment.

    Args:
        sessions: that folder's.

    Raises:
        HostUnfit: it does not start.
    """
    limits = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "_memory": MEMORY_BYTES}
    own = {"address": "local", "include_dashboard": False, "_temp_dir": str(sessions), **limits}
    with _attached("Ray does not start", "run `rayprep doctor`", **own):
        yield


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """An existing cluster, of which this host is a node. It is asked first: Ray itself waits for minutes.

    Raises:
        HostUnfit: nothing answers there, it wants a token, or it runs another Ray or Python.
    """
    _knock(address)
    _check_token_file(os.environ.get("RAY_AUTH_TOKEN_PATH"))
    _ask(address)
    hint = "check Ray's version and RAY_AUTH_TOKEN_PATH on this host"
    with _attached(f"Ray at {address} cannot be joined", hint, address=address):
        yield


@contextlib.contextmanager
def _attached(failure: str, hint: str, **options: object) -> Iterator[None]:
    import ray

    init: Any = ray.init
    try:
        try:
            init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
        except SystemExit:
            raise KeyboardInterrupt from None  # how Ray takes SIGTERM while it starts
        except Exception as error:
            raise _unavailable(f"{failure}: {_first_line(error)}", hint) from error
        yield
    finally:
        with kept_off_stdout():
            ray.shutdown()  # also what a start that was interrupted has left


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise _unavailable(f"--address {address} is not HOST:PORT", "give the head's address, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _unavailable(
            f"nothing answers at {address}: {error.strerror or error}", "check --address, and that the head runs"
        ) from None


def answers_at(address: str) -> bool:
    """Whether the head takes a connection; a frozen one does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError:
        return False
    return True


def _check_token_file(path: str | None) -> None:
    """Ray aborts the whole process over one that it cannot read."""
    if path is None:
        return
    try:
        empty = not read_text(path).strip()
    except (OSError, ValueError) as error:
        raise _unavailable(f"the token file {path} cannot be read: {error}", "copy the head's token there") from None
    if empty:
        raise _unavailable(f"the token file {path} is empty", "copy the head's token there")


def _ask(address: str) -> None:
    """A cluster that wants a token says so at once here, and after 20 s, and not in so many words, to `ray.init`."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        with _quiet():
            metadata = _metadata(GcsClient(address=address))
    except Exception as error:  # noqa: BLE001 - Ray has several for it, by its version
        if "InvalidAuthToken" in str(error):
            raise _unavailable(
                f"the cluster at {address} wants another token than this shell has",
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a copy of the head's token file",
            ) from None
        return  # whatever else it is, `ray.init` says it better
    if metadata is not None:
        _check_versions(address, metadata)


def _metadata(gcs: Any) -> RayVersions | None:  # noqa: ANN401 - Ray's own type for it is private
    """What the cluster was started with; None where it does not say so in a form that we know."""
    found = gcs.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=CONNECT_TIMEOUT_S)
    try:
        return read_tolerant(RayVersions, found) if found else None
    except ValidationError:
        return None


def _check_versions(address: str, cluster: RayVersions) -> None:
    """Ray's own check has seven lines for it, of which the first names no version."""
    import ray

    python = ".".join(map(str, sys.version_info[:3]))
    here = RayVersions(ray_version=ray.__version__, python_version=python)
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    if not here.fits(cluster, patch=level == "patch"):
        raise _unavailable(
            f"the cluster at {address} runs {cluster}, and this is {here}",
            "run rayprep in a Python that has the cluster's versions of both",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray's C++ writes to descriptor 2 before it has its log level."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _unavailable(message: str, hint: str) -> HostUnfit:
    return HostUnfit(message, hint=hint, error_type=ErrorType.RAY_UNAVAILABLE)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
