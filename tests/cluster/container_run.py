"""A real init-run.sh on ports of its own, and a stand-in for SGLang's /metrics beside it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from tests.processes import alive, named, wait_for

ROOT = Path(__file__).parents[2]
INIT_RUN = ROOT / "cluster" / "observability" / "init-run.sh"
METRICS = ROOT / "tests" / "data" / "metrics-sglang-0.5.16.txt"
RUN_ID = "container-run-test"
_PORTS = (9090, 16686, 9100, 9400, 30999)


def free_base() -> int:
    """A PORT_BASE with which every port of a run is free. Other test workers look for theirs by other steps."""
    for base in range(1000 + os.getpid() % 97, 30000, 97):
        if all(_is_free(port + base) for port in _PORTS):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return tried.connect_ex(("127.0.0.1", port)) != 0


@dataclass
class ContainerRun:
    """Below `base`, whose name may have a space: the run's roots, and a folder of programs before PATH."""

    base: Path
    port_base: int = field(default_factory=free_base)
    process: subprocess.Popen[str] | None = None
    said: str = ""
    script: Path = INIT_RUN
    wrapper: tuple[str, ...] = ()
    """What starts the script."""

    def __post_init__(self) -> None:
        self.programs.mkdir(parents=True)
        self.profiles.mkdir()
        self.add("rayprep", f'#!/bin/sh\nexec "{sys.executable}" -m rayprep "$@"\n')

    @property
    def programs(self) -> Path:
        return self.base / "programs"

    @property
    def profiles(self) -> Path:
        return self.base / "profiles"

    @property
    def telemetry(self) -> Path:
        return self.base / "telemetry"

    @property
    def pointer(self) -> Path:
        return self.telemetry / "container_run_meta.env"

    @property
    def log(self) -> str:
        return (self.telemetry / "logs" / f"{RUN_ID}.log").read_text(encoding="utf-8")

    @property
    def manifest_path(self) -> Path:
        return self.telemetry / "container_runs" / RUN_ID / "container_run_meta.json"

    @property
    def manifest(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        return loaded

    @property
    def surfaces(self) -> dict[str, tuple[str, str | None]]:
        return {name: (each["status"], each["warning"]) for name, each in self.manifest["telemetry_surfaces"].items()}

    def add(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text, encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def borrow_script(self) -> None:
        """A copy of it, since this checkout may be closed to other users."""
        self.script = Path(shutil.copytree(INIT_RUN.parent, self.base / "observability")) / INIT_RUN.name

    def hide_all_but_tools(self) -> None:
        """A machine on which no telemetry program is installed: PATH has just what the script itself needs."""
        tools = ("bash", "env", "sh", "sed", "tee", "tail", "cut", "date", "mkdir", "rm", "sleep", "setsid", "timeout")
        for tool in (*tools, "dirname", "readlink", "id", "setcap", "chown", "getent", "setpriv"):
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)

    def start(self, *command: str, **env: str) -> None:
        settings = {
            "TELEMETRY_ROOT": str(self.telemetry),
            "PROFILES_ROOT": str(self.profiles),
            "CONTAINER_HOST_TELEMETRY_ROOT": "/home/me/telemetry",
            "CONTAINER_HOST_PROFILES_ROOT": "/home/me/caches",
            "CONTAINER_HOST_HOME": "/home/me",
            "CONTAINER_RUN_ID": RUN_ID,
            "PORT_BASE": str(self.port_base),
            "SCRAPE_INTERVAL": "200ms",
            "PATH": f"{self.programs}:{os.environ['PATH']}",
        }
        self.process = subprocess.Popen(
            [*self.wrapper, str(self.script), *command],
            cwd=ROOT,
            env={**os.environ, **settings, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> None:
        wait_for(self.pointer.exists, "the pointer")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status, and all that it has said."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.end_by_itself()

    def end_by_itself(self) -> tuple[int, str]:
        """The same of a run that nobody ends."""
        assert self.process is not None
        if self.process.stdout and not self.process.stdout.closed:
            self.said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, self.said

    def left(self) -> list[psutil.Process]:
        return alive(named(list(psutil.process_iter()), str(self.base)))


@contextmanager
def metrics_server(port: int) -> Iterator[None]:
    """Answers as a real server did, with a prompt more in every answer."""
    answers = iter(range(1, 1 << 30))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lines = METRICS.read_text(encoding="utf-8").splitlines()
            name = "sglang:prompt_tokens_total{"
            counted = [
                f"{line.rpartition(' ')[0]} {next(answers)}" if line.startswith(name) else line for line in lines
            ]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write("\n".join([*counted, ""]).encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
