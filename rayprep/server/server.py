"""An SGLang server for warming caches up, or for proving that they are warm: started, asked, and ended."""

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from enum import Enum, auto
from pathlib import Path
from typing import Literal

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.ports import first_free
from rayprep.host.process import GRACE_S
from rayprep.model.process_end import Cleanup, together
from rayprep.server.attempt import ServerProcess, Watch
from rayprep.server.client import Address, Answer, Health, in_background
from rayprep.server.gpu_memory import HEADROOM_BYTES, KEPT_MEMORY, ServerMemory
from rayprep.sglang.command import address_of, next_mem_fraction, option_of, server_env
from rayprep.sglang.failures import hint_with_log, telling_line
from rayprep.sglang.log import LogReader
from rayprep.sglang.warmup_requests import GenerateRequest, Round

__all__ = ["Server", "Watch"]

POLL_S = 0.25
MEMORY_WAIT_S = 15.0
REQUEST_TIMEOUT_S = 900.0
"""For one request, which may have to wait for a compiler."""
_LAST_MOMENT_S = 2.0


class _Outcome(Enum):
    READY = auto()
    PORT_TAKEN = auto()
    OUT_OF_MEMORY = auto()


class Server:
    """A warm-up server, or a user's own. A context manager: leaving it ends the whole tree.

    `command_for(port, mem_fraction)` gives the command. One that is the same whatever the fraction, such as a user's
    own, is not tried again with another, and its GPUs may be as full as it likes.
    """

    def __init__(
        self,
        command_for: Callable[[int, float], Sequence[str]],
        ports: Sequence[int],
        mem_fraction: float,
        env: Mapping[str, str],
        log: Path,
        watch: Watch,
        lock_descriptors: Sequence[int] = (),
        gpu_uuids: Sequence[str] = (),
        *,
        grace_s: float = GRACE_S,
        poll_s: float = POLL_S,
        memory_wait_s: float = MEMORY_WAIT_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._command_for, self._ports, self._gpu_uuids = command_for, tuple(ports), tuple(gpu_uuids)
        self._env, self._log, self._watch = {**env, **server_env(env)}, log, watch
        self._lock_descriptors = tuple(lock_descriptors)
        self._grace_s, self._poll_s, self._memory_wait_s = grace_s, poll_s, memory_wait_s
        self._request_timeout_s = request_timeout_s
        self._process: ServerProcess | None = None
        self._memory = ServerMemory(())
        self._address = Address("127.0.0.1", 0)
        self._command: tuple[str, ...] = ()
        self._fractions: tuple[float, ...] = (mem_fraction,)
        self.port: int | None = None
        self.attempts = 0
        self.ready_s: float | None = None
        """From the start of the attempt that succeeded to the first 200 of /health."""
        self.cleanups: list[Cleanup] = []
        self.memory_returned: bool | None = None
        """Whether the GPUs' memory was back to where it was after the end; None where nobody can tell."""

    @property
    def mem_fraction(self) -> float:
        """Of the last attempt."""
        return self._fractions[-1]

    @property
    def pid(self) -> int | None:
        """Of the server itself, not of its guard."""
        return self._process.pid if self._process else None

    @property
    def command(self) -> tuple[str, ...]:
        """Of the last attempt; empty before the first."""
        return self._command

    @property
    def reader(self) -> LogReader:
        """What the log of the last attempt says, as far as it was read."""
        return self._process.reader if self._process else LogReader()

    @property
    def cleanup(self) -> Cleanup | None:
        """How all attempts were ended, together; None before the first end."""
        return together(self.cleanups)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to say of the memory of a server that has ended."""
        first, last = self._fractions[0], self.mem_fraction
        lowered = (f"mem fraction {first} left too little GPU memory; {last} was used",) if last != first else ()
        return (*lowered, KEPT_MEMORY) if self.memory_returned is False else lowered

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that the server wrote, without progress bars."""
        return self._process.log_tail() if self._process else ()

    def start(self) -> None:
        """Starts the server and waits until it is ready: on the next port, or with less memory, where that helps.

        Raises:
            StageError: `port_all_busy`, `oom_during_warmup`, `stage_timeout`, `cleanup_failed`, or what
                `classify_failure` makes of the log of a server that died.
            Interrupted: the run was cancelled.
        """
        self._memory = ServerMemory(self._gpu_uuids)
        tried_ports: tuple[int, ...] = ()
        while True:
            port = first_free(self._ports[len(tried_ports) :], tried_ports)
            outcome = self._attempt(port)
            if outcome is _Outcome.READY:
                return
            self.end()
            if outcome is _Outcome.PORT_TAKEN:
                tried_ports = self._ports[: self._ports.index(port) + 1]
                continue
            lower = self._lower
            if lower is None or self.reader.wants_more_memory or not self._adapts(lower):
                raise self._out_of_memory(self._fractions)
            self._fractions = (*self._fractions, lower)

    def _attempt(self, port: int) -> _Outcome:
        self._command = tuple(self._command_for(port, self.mem_fraction))
        self._address = Address(address_of(self._command)[0], port, option_of(self._command, "--api-key"))
        self.port = port
        self._watch.report("starting the warm-up server", None, None)
        started = time.monotonic()
        process = self._process = ServerProcess(
            self._command, self._env, self._log, self._watch, self._lock_descriptors, self._grace_s
        )
        self.attempts += 1
        outcome = self._wait_until_ready(process, port)
        if outcome is _Outcome.READY:
            self.ready_s = time.monotonic() - started
        return outcome

    def _wait_until_ready(self, process: ServerProcess, port: int) -> _Outcome:
        health = Health(self._address)
        headroom_seen = False
        while True:
            behind = process.look()
            if process.is_dead():
                failure = process.failure()
                hindrance = _hindrance(process.reader, port, dead=True)
                if hindrance is None:
                    raise failure
                return hindrance
            if hindrance := _hindrance(process.reader, port, dead=False):
                return hindrance
            if process.reader.memory_pool_ended and not headroom_seen:
                headroom_seen = True
                if self._memory.is_short() and self._adapts(self.mem_fraction / 2):
                    return _Outcome.OUT_OF_MEMORY
            # What NVML shows at that moment is a matter of luck where it is about enough; this is not.
            if process.reader.went_without_graphs and self._lower is not None and self._adapts(self._lower):
                return _Outcome.OUT_OF_MEMORY
            # Another's server may answer at this port, before ours has come so far as to find it taken.
            if health.is_up() and (process.reader.ready or process.listens_at(port)):
                return _Outcome.READY
            if not behind:
                time.sleep(self._poll_s)

    @property
    def _lower(self) -> float | None:
        """The fraction to try next, where there is one."""
        return next_mem_fraction(self._fractions)

    def _adapts(self, fraction: float) -> bool:
        """Whether the command heeds the fraction."""
        assert self.port is not None
        return tuple(self._command_for(self.port, fraction)) != self._command

    def _out_of_memory(self, tried: tuple[float, ...]) -> StageError:
        said = telling_line(self.reader.signs, ErrorType.OOM_DURING_WARMUP)
        why = said or f"less than {HEADROOM_BYTES >> 30} GiB were free once it had its memory pools"
        flag, fractions = "--mem-fraction", " and ".join(map(str, tried))
        if not self._adapts(tried[-1] / 2):  # it goes by its own, or by SGLang's choice
            flag, fractions = "its --mem-fraction-static", option_of(self._command, "--mem-fraction-static") or ""
        others = self._memory.held_by_others()
        advice = f"{'raise' if self.reader.wants_more_memory else 'lower'} {flag}, or free the GPU"
        return StageError(
            ErrorType.OOM_DURING_WARMUP,
            f"the warm-up server ran out of GPU memory{f' at mem fraction {fractions}' if fractions else ''}: {why}"
            + (f"; before it started, {others}" if others else ""),
            hint=hint_with_log(ErrorType.OOM_DURING_WARMUP, str(self._log), advice),
            log_tail=self.log_tail(),
        )

    def send(self, rounds: Sequence[Round]) -> None:
        """Sends the requests, those of one round at once, each round after the one before.

        Raises:
            StageError: `unsupported` where it is well and refuses a request (4xx); `server_crashed` for another
                answer than 200, for none, or for a dead server (or what its log makes of that); `stage_timeout` at
                the deadline.
            Interrupted: the run was cancelled.
        """
        assert self._process is not None, "the server was not started"
        for number, requests in enumerate(rounds):
            self._watch.report("sending warm-up requests", number, len(rounds))
            self._send_round(self._process, requests)
        self._watch.report("sending warm-up requests", len(rounds), len(rounds))

    def _send_round(self, process: ServerProcess, requests: Round) -> None:
        asked = {in_background(self._post, request): request for request in requests}
        while asked:
            behind = process.look()
            if process.is_dead():
                raise process.failure()
            done, _ = wait(asked, timeout=0 if behind else self._poll_s, return_when=FIRST_COMPLETED)
            for future in done:
                self._check(process, asked.pop(future), future)

    def _post(self, request: GenerateRequest) -> Answer:
        left = max(0.1, self._watch.deadline - time.monotonic())
        timeout_s = min(left, self._request_timeout_s)
        return self._address.request("POST", "/generate", timeout_s, request.model_dump_json())

    def _check(self, process: ServerProcess, request: GenerateRequest, future: "Future[Answer]") -> None:
        what = f"a request of {len(request.input_ids)} x {max(map(len, request.input_ids))} tokens"
        try:
            answer = future.result()
            if answer.status == 200:
                return
            problem = f"answered {answer.status} to {what}: {answer.beginning}"
            if 400 <= answer.status < 500:
                hint = "see which of the server's flags, such as --context-length or --api-key, rules the request out"
                raise StageError(ErrorType.UNSUPPORTED, f"the warm-up server {problem}", hint=hint)
        except TimeoutError:
            process.look()  # at the deadline, it is the stage that took too long
            problem = f"did not answer {what} within {self._request_timeout_s:g} s"
        except (OSError, http.client.HTTPException) as error:
            self._wait_for_death(process)
            problem = f"broke off {what}: {error or type(error).__name__}"
        raise self._crashed(process, problem)

    def _crashed(self, process: ServerProcess, problem: str) -> StageError:
        process.look()
        death = process.reader.death
        message = f"the warm-up server {problem}" + (f"; the last exception of its log: {death.line}" if death else "")
        hint = hint_with_log(ErrorType.SERVER_CRASHED, str(self._log))
        return StageError(ErrorType.SERVER_CRASHED, message, hint=hint, log_tail=self.log_tail())

    def _wait_for_death(self, process: ServerProcess) -> None:
        """A connection breaks a moment before the process that held it is gone, and its log says more than we do."""
        until = time.monotonic() + _LAST_MOMENT_S
        while time.monotonic() < until:
            process.look()
            if process.is_dead():
                raise process.failure()
            time.sleep(self._poll_s / 5)

    def end(self) -> Cleanup:
        """Ends the whole tree, and waits until its GPU memory is free. Ending twice is ending once.

        Raises:
            StageError: `cleanup_failed`, where something is alive all the same.
        """
        if self._process is not None and len(self.cleanups) < self.attempts:
            self.cleanups.append(self._process.end())
            if not self.cleanups[-1].killed:
                message = f"a process of the warm-up server (pid {self.pid}) is alive after its end"
                raise StageError(ErrorType.CLEANUP_FAILED, message, log_tail=self.log_tail())
            self.memory_returned = self._memory.is_returned(self._memory_wait_s, self._poll_s, self._watch.tick)
        return self.cleanup or Cleanup(kill_sent=False, killed=True, timeout_s=self._grace_s)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        try:
            self.end()
        except StageError:
            if kind is None:  # else the first error says more
                raise
        return False


def _hindrance(reader: LogReader, port: int, *, dead: bool) -> _Outcome | None:
    """What the log says that another start may get around."""
    if reader.lost_port(port, dead=dead):
        return _Outcome.PORT_TAKEN
    return _Outcome.OUT_OF_MEMORY if reader.out_of_memory else None
