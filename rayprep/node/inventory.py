"""The installed SGLang, asked what the server of a request needs: one child process, beside other work.

It takes no lock and writes nothing below the profiles root, so that it can be asked while Ray starts or another run
builds. It stops no run: what it does not say is planned by our tables, or left to the server.
"""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rayprep.base.errors import Interrupted, RayprepError
from rayprep.base.secrets import redacted_command
from rayprep.host.environment import child_env
from rayprep.host.gpu import Gpu, visible_env
from rayprep.host.layout import Layout
from rayprep.host.process import Child
from rayprep.model.spec import DeviceChoice
from rayprep.node.request import NodeRequest
from rayprep.node.survey import Survey
from rayprep.sglang.inventory import ENVIRONMENT, Answer, Inventory, Refusal, Unasked, parse_answer, variables_digest
from rayprep.stages.protocol import StageRequest
from rayprep.stages.warmup_server import implied_command

DEADLINE_S = 120.0
"""Measured on an H200's host: 20 to 29 s, nearly all of it SGLang's imports; a slow file system takes longer."""
_LOADER = "srt/model_loader/loader.py"
_PORT, _FRACTION = 30000, 0.9
"""Of a server that is never started."""


def may_ask(survey: Survey) -> bool:
    """Whether there is work for a GPU, and an SGLang that nobody has asked yet."""
    request = survey.request
    wanted = survey.plan.needs_work and request.answer is None and request.device is DeviceChoice.CUDA
    return wanted and can_be_asked()


def can_be_asked() -> bool:
    """Whether the SGLang that is installed is of a layout that is known here. Imports nothing of it."""
    spec = importlib.util.find_spec("sglang")
    return spec is not None and bool(spec.origin) and (Path(str(spec.origin)).parent / _LOADER).is_file()


def ask(survey: Survey, request: NodeRequest, environ: Mapping[str, str], cancelled: Callable[[], bool]) -> Answer:
    """Ask, and wait for the answer. Raises Interrupted where `cancelled()` became true."""
    with Asking.of(survey, request, environ) as asking:
        return asking.finish(cancelled)


class Asking:
    """The child that asks. A context manager: entering starts it, leaving ends its whole tree, whatever it was at."""

    def __init__(
        self, request: StageRequest, gpus: Sequence[Gpu], log: Path, environ: Mapping[str, str], invocation: str
    ) -> None:
        self._request, self._gpus, self._log = request, gpus, log
        self._environ, self._invocation = environ, invocation
        self._child: Child | None = None
        self._failed = ""
        self._stack = ExitStack()
        self._began = time.monotonic()

    @classmethod
    def of(cls, survey: Survey, request: NodeRequest, environ: Mapping[str, str]) -> "Asking":
        """For a run: on the GPUs of its first server, with a log in its folder."""
        log = survey.layout.run(request.run_id) / "inventory.log"
        with contextlib.suppress(OSError):  # of which the log tells
            survey.layout.runs.make(log.parent)
        return cls(survey.request, survey.slices[0], log, environ, request.invocation)

    def __enter__(self) -> "Asking":
        with ExitStack() as stack:
            try:
                named = TemporaryDirectory(prefix="rayprep-inventory.", ignore_cleanup_errors=True)
                folder = Path(stack.enter_context(named))
                self._child = stack.enter_context(Child(self._command(folder), self._env(folder), self._log))
            except OSError as error:
                self._failed = f"{error.filename or 'its process'}: {error.strerror or error}"
            self._stack = stack.pop_all()
        return self

    def _command(self, folder: Path) -> Sequence[str]:
        """The server's own flags: what follows `python -P -m sglang.launch_server` in its command."""
        command = implied_command(self._request, folder)(_PORT, _FRACTION)
        python, plain, run, _, *flags = redacted_command(command)  # a key changes no kernel
        return (python, plain, run, "rayprep.sglang.inside.inventory", *flags)

    def _env(self, folder: Path) -> dict[str, str]:
        """As a server has it, but for its caches: those of a root that is empty, and nobody else's."""
        empty = Layout(folder / "profiles", folder / "telemetry")
        env = child_env(self._environ, empty, folder, self._invocation)
        return {**env, **ENVIRONMENT, **visible_env(self._gpus)}

    def finish(self, cancelled: Callable[[], bool] = lambda: False, tick: Callable[[], None] = lambda: None) -> Answer:
        """Waits for the answer.

        Raises:
            Interrupted: `cancelled()` became true.
        """
        if self._child is None:
            return Unasked(unknown=self._failed)
        answers: list[Answer] = []
        try:
            for line in self._child.lines(self._began + DEADLINE_S, cancelled, tick):
                answers += [answer] if (answer := parse_answer(line)) else []
        except Interrupted:
            raise
        except RayprepError:
            return Unasked(unknown=f"it did not answer within {DEADLINE_S:.0f} s: see {self._log}")
        status, _ = self._child.end()
        if not answers:
            return Unasked(unknown=f"it ended by status {status}: see {self._log}")
        answer, variables = answers[-1], variables_digest(self._environ)
        return answer.model_copy(update={"variables": variables}) if isinstance(answer, Inventory) else answer

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def warning_of(answer: Answer | None) -> str | None:
    """One line for who waits for the run, where the answer is none that can be planned by."""
    if isinstance(answer, Refusal):
        return f"SGLang refuses this model or its flags, and so will its server: {answer.refused}"
    if isinstance(answer, Unasked):
        return f"SGLang could not be asked what its server needs, so rayprep's tables say it: {answer.unknown}"
    return None
