"""The servers of a proof, one on each slice of the host, all at once: each is started, asked for everything, ended."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayprep.host.gpu import Gpu
from rayprep.host.layout import Layout
from rayprep.host.server import Server
from rayprep.model.errors import Interrupted, RayprepError
from rayprep.model.verification import SliceProof, new_files
from rayprep.model.warmup import Round


@dataclass
class ProofServer:
    """One of them, with what became of it."""

    index: int
    gpus: Sequence[Gpu]
    server: Server
    home: Path
    """The HOME that nothing had used."""
    log: Path
    failure: RayprepError | None = None

    def run(self, rounds_for: Callable[[Server], Sequence[Round]]) -> None:
        """Keeps its failure, so that the others go on. Raises Interrupted when the run was cancelled."""
        try:
            with self.server as server:
                server.start()
                server.send(rounds_for(server))
        except Interrupted:
            raise
        except RayprepError as error:
            self.failure = error

    def outcome(self, layout: Layout, home: Sequence[str]) -> SliceProof:
        """`home` are the files that are in its HOME now."""
        server, events, left = self.server, self.server.reader.jit_events, new_files((), home)
        said = [f"it left {len(left)} files in its HOME, first {left[0].path}"] if left else []
        said += [f"its log speaks of {len(events)} compilations, first: {events[0]}"] if events else []
        message = self.failure.line if self.failure else "; ".join(said)
        return SliceProof(
            index=self.index,
            gpus=tuple(gpu.index for gpu in self.gpus),
            status="error" if message else "ok",
            ready_s=round(server.ready_s, 3) if server.ready_s is not None else None,
            jit_events=len(events),
            port=server.port,
            warmup_pid=server.pid,
            log_file=layout.located(self.log),
            error_type=self.failure.error_type if self.failure else None,
            message=message or None,
        )


def run_at_once(servers: Sequence[ProofServer], rounds_for: Callable[[Server], Sequence[Round]]) -> None:
    """Returns once all have ended.

    Raises:
        Interrupted: the run was cancelled.
    """
    with ThreadPoolExecutor(max_workers=len(servers)) as pool:
        running = [pool.submit(each.run, rounds_for) for each in servers]
    for each in running:
        each.result()
