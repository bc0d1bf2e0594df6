"""Warm-up servers that are the stand-in of tests/fakes, and what is asked of them."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from rayprep.base.errors import StageError
from rayprep.host.process import marked_processes
from rayprep.server.server import Server, Watch
from rayprep.sglang.warmup_requests import GenerateRequest, Sampling
from tests.host.test_ports import free_port

TESTS = Path(__file__).parents[1]
FAKE = (sys.executable, "-I", "-S", str(TESTS / "fakes" / "sglang_server.py"))
MARK = "RAYPREP_TEST_SERVER"
ONE = GenerateRequest(input_ids=((1, 2, 3),), sampling_params=Sampling(max_new_tokens=4))


@dataclass
class Bench:
    """Makes servers that leave no time to waste, and knows all processes that belong to them."""

    folder: Path
    reports: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    commands: list[tuple[str, ...]] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False

    @property
    def mark(self) -> str:
        return str(self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "serve.log"

    def server(
        self,
        *words: str,
        ports: Sequence[int] = (),
        seconds: float = 30,
        command_for: Callable[[int, float], Sequence[str]] | None = None,
        request_timeout_s: float = 20,
    ) -> Server:
        def fake(port: int, fraction: float) -> Sequence[str]:
            flags = ("--port", str(port), "--mem-fraction-static", str(fraction), "--skip-tokenizer-init")
            self.commands.append((*FAKE, *flags, *words))
            return self.commands[-1]

        # torch, where another test has imported it, leaves a cache variable of its own behind.
        environ = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        return Server(
            command_for or fake,
            ports or (free_port(),),
            0.96,
            {**environ, MARK: self.mark, "HOME": str(self.folder)},
            self.log,
            Watch(
                deadline=time.monotonic() + seconds,
                cancelled=lambda: bool(self.cancelled()),
                tick=lambda: self.ticks.append(time.monotonic()),
                report=lambda *said: self.reports.append(said),
            ),
            grace_s=0.5 if "deaf" in words else 30.0,
            poll_s=0.03,
            request_timeout_s=request_timeout_s,
        )

    def left(self) -> list[psutil.Process]:
        """What lives of any server's tree, guards too."""
        return marked_processes(MARK, self.mark)


def fault(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--fault", name))


def failing(server: Server, use: Callable[[Server], None] = Server.start) -> StageError:
    with pytest.raises(StageError) as caught, server:
        use(server)
    return caught.value


def start_and_send(server: Server) -> None:
    server.start()
    server.send([(ONE,)])


def saying(line: str, *command: str) -> Callable[[int, float], Sequence[str]]:
    """A command that writes a line first."""
    return lambda port, _: ("sh", "-c", 'echo "$0"; exec "$@"', line, *command, "--port", str(port))
