"""The servers of a proof, one on each slice of the host, all at once: each is started, asked for everything, ended."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayprep.base.errors import Interrupted, RayprepError
from rayprep.host.gpu import Gpu
from rayprep.host.layout import Layout
from rayprep.model.proof import SliceProof, new_files
from rayprep.model.spec import PrepSpec
from rayprep.node.survey import Survey
from rayprep.server.server import Server, Watch
from rayprep.sglang.warmup_requests import Round
from rayprep.stages.warmup_server import CommandFor, implied_command, open_own_server, open_server


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


@dataclass(frozen=True)
class ProofServers:
    """Makes them: each sees the GPUs of its slice, and has ports, a log and a HOME of its own. None is started."""

    survey: Survey
    env: Mapping[str, str]
    scratch: Path
    """The first one's HOME, not made yet. The others' are made beside it."""
    log: Path
    """The first one's; the others' are beside it."""
    lock_descriptors: Sequence[int]
    watch: Callable[[int], Watch]
    """How the run looks on, by the slice's number."""

    def own(self, command: Sequence[str]) -> ProofServer:
        """The user's own, with every GPU that the user let it see."""
        gpus = self.survey.gpus
        self.scratch.mkdir()
        env = self._env(self.scratch)
        server = open_own_server(command, env, self.log, self.watch(0), self.lock_descriptors, gpus)
        return ProofServer(0, gpus, server, self.scratch, self.log)

    def implied(self) -> CommandFor:
        """The command of those that the request implies."""
        folder = self.scratch.with_name("verify-model")
        folder.mkdir()
        return implied_command(self.survey.request, folder)

    def on_slice(self, spec: PrepSpec, command_for: CommandFor, index: int) -> ProofServer:
        home = self.scratch.with_name(f"verify-{index}") if index else self.scratch
        home.mkdir()
        log = self.log.with_name(f"verify-{index}.log") if index else self.log
        gpus, env = self.survey.slices[index], self._env(home)
        server = open_server(spec, command_for, env, log, self.watch(index), self.lock_descriptors, gpus, index)
        return ProofServer(index, gpus, server, home, log)

    def _env(self, home: Path) -> dict[str, str]:
        return {**self.env, "HOME": str(home), "SGLANG_CRASH_ON_JIT_COMPILE": "1"}
