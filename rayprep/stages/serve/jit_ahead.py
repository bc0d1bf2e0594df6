"""SGLang's own JIT modules, built ahead: side by side in a child process, while the server that wants them imports.

The server would compile them one after another, each when it first calls it: 5 to 8 s each on an H200, while its
imports before that keep hardly one CPU busy for half a minute. Whatever the child does not build, the server does.
"""

import sys
from types import TracebackType

from pydantic import ValidationError

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.gpu import visible_env
from rayprep.host.process import Child
from rayprep.sglang.command import server_env
from rayprep.sglang.hopper import HOPPER, HOPPER_ARCH
from rayprep.sglang.jit_functions import JitModule
from rayprep.sglang.jit_modules import JitLine, JitRequest, jit_modules, left_to_the_server
from rayprep.stages.protocol import BuildContext, StageRequest

LOG = "sglang_jit.log"
"""Beside the stage's log, which is the server's alone: there, a failure would read as the server's."""


class SglangJit:
    """The child. A context manager: entering starts it, leaving ends its whole tree, whatever it was at.

    `finish` waits for it. A module that was broken off may be half written, so a build that succeeds calls it.
    """

    def __init__(self, request: StageRequest, context: BuildContext) -> None:
        self._context, self._modules = context, modules_ahead(request)
        self._child: Child | None = None

    def __enter__(self) -> "SglangJit":
        if self._modules:
            context = self._context
            file = context.scratch / "sglang_jit.json"
            file.write_text(JitRequest(modules=self._modules).model_dump_json(), encoding="utf-8")
            # -P: a file of the user's that is called like one of Python's own must not be imported in its place.
            command = [sys.executable, "-P", "-m", "rayprep.stages.serve.jit_child", str(file)]
            self._child = Child(command, self._env(), context.log.with_name(LOG), context.lock_descriptors)
        return self

    def _env(self) -> dict[str, str]:
        """The server's, so that SGLang finds the same GPU and the same compilers."""
        env = self._context.env
        return {**env, **server_env(env), **visible_env(self._context.gpus), "TVM_FFI_CUDA_ARCH_LIST": HOPPER_ARCH}

    def finish(self) -> tuple[str, ...]:
        """Waits until every module is built or has failed. Returns at most one warning, of those that have.

        Raises:
            Interrupted: the run was cancelled.
            StageError: `stage_timeout`, or `cleanup_failed` where one of its processes is alive all the same.
        """
        child, context = self._child, self._context
        if child is None:
            return ()
        heard = [_heard(text) for text in child.lines(context.deadline, context.cancelled, context.tick)]
        status, cleanup = child.end()
        if not cleanup.killed:
            message = "a process that compiled SGLang's modules is still alive after its end"
            raise StageError(ErrorType.CLEANUP_FAILED, message)
        ended = f"the compiling process ended by status {status}"
        return left_to_the_server(self._modules, [line for line in heard if line], ended)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.__exit__(kind, error, trace)
            if self._child.cleanup:
                self._context.ended(self._child.cleanup)


def modules_ahead(request: StageRequest) -> tuple[JitModule, ...]:
    """What is built ahead: nothing on a GPU whose modules are not known, or where no compiler is found."""
    signature = request.signature
    if signature.compute_capability != HOPPER or signature.nvcc is None:
        return ()
    spec = request.spec
    return jit_modules(request.model.architecture, spec.tp, spec.server_args, signature.sglang_version)


def _heard(text: str) -> JitLine | None:
    try:
        return JitLine.model_validate_json(text)
    except ValidationError:
        return None  # not ours
