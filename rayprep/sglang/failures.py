"""Why a server failed, decided from the lines of its log."""

import re
from collections.abc import Iterable, Sequence

from rayprep.base.errors import MEANING, ErrorType
from rayprep.sglang.failure_signs import MORE_MEMORY, SIGNS, sign_in

READY = "The server is fired up and ready to roll!"
GENERAL = "general"
_WRONG_FLAG = r"^[\w. -]+: error: (?:unrecognized arguments|the following arguments|ambiguous option|argument )"
"""As argparse ends a program that was given a flag which it does not take; the program's name is before it."""
_GENERAL = re.compile(
    r"hit an exception|^\w*(?:Error|Exception)\b.*|^[\w.]+(?:Error|Exception): |^torch\.\w+\.exc\.|watchdog timeout"
    rf"|{_WRONG_FLAG}",
    re.I,
)
_SUMMARY = re.compile(
    rf"^(?:[\w.]*\.)?\w*(?:Error|Exception)\b: ?.+|^torch\.\w+\.exc\.\w+|watchdog timeout|{_WRONG_FLAG}", re.I
)
_UNRAISED = re.compile(rf"watchdog timeout|{_WRONG_FLAG}", re.I)
TORCH_COMPILE = "torch_compile"
_IN_TORCH_COMPILE = re.compile(r'File "[^"]*/torch/_(?:dynamo|inductor)/|^torch\._(?:dynamo|inductor)\.exc\.')
"""A frame of a traceback, or an exception's type."""
PLACE = "place"
_PLACE = re.compile(r'File "[^"]*?/(sglang/srt/[^"]+)", line (\d+), in (\w+)')
"""A frame in SGLang. The last in a log that torch.compile ended is what it was compiling."""

_ACCIDENT = re.compile(
    r"\bCUDA(?: driver)? error\b|\bTriton Error \[CUDA\]|\bCUBLAS_STATUS_ALLOC_FAILED\b|NCCL"
    r"|BrokenProcessPool|\b(?:died|killed)\b|(?-i:\bSIG[A-Z]{2,}\b)|\bfailed with error code -\d"
    r"|\bErrno\b|(?<!OutOf)MemoryError|\bbad_alloc\b|\bCannot allocate memory\b|\bcan't start new thread\b"
    r"|\btimed? ?out\b|\bDist(?:Store|Network)Error\b|\bEADDRINUSE\b|\bConnection (?:reset|refused|closed)\b"
    # Half of a cache's file, or of an answer from a compile process.
    r"|\b(?:EOF|JSONDecode|Unpickling)Error\b",
    re.IGNORECASE,
)
"""What may pass, and says nothing of the versions and flags that a server was started with."""


def sign_of(line: str) -> str | None:
    """What a line is a sign of, where `classify_failure` or `telling_line` would look at it.

    One line of each decides as much as all of them; of the `general` ones only the last tell, and of `place` the last.
    """
    if READY in line:
        return "ready"
    decisive = next((error_type.value for error_type, pattern, _ in SIGNS if pattern.search(line)), None)
    if decisive or _GENERAL.search(line):
        return decisive or GENERAL
    if _IN_TORCH_COMPILE.search(line):
        return TORCH_COMPILE
    return PLACE if _PLACE.search(line) else None


def ends_without_exception(line: str) -> bool:
    """Whether a line tells of an end that no exception makes."""
    return _UNRAISED.search(line) is not None


def wants_more_memory(line: str) -> bool:
    """Whether the server asks for a larger --mem-fraction-static, not a smaller one."""
    return MORE_MEMORY in line


def classify_failure(lines: Iterable[str], exit_status: int | None) -> ErrorType:
    """The error type of a server that ended, or was given up.

    Args:
        lines: its log, or the `signs` that a LogReader kept of it.
        exit_status: as a shell gives it, 128 + N for signal N; None where it lives.
    """
    lines = tuple(lines)
    if sign := sign_in(lines):
        return sign
    if exit_status == 127 and not lines:
        return ErrorType.TOOLCHAIN_MISMATCH  # the guard's word for a command that cannot be started
    if any(READY in line for line in lines):
        return ErrorType.SERVER_CRASHED
    return ErrorType.SERVER_START_FAILED


def torch_compile_failure(lines: Sequence[str], last: str | None = None) -> str | None:
    """What a log says where torch.compile failed, or something that it was compiling; None where neither shows.

    Args:
        last: as for `telling_line`; heeded where no line is called an error.
    """
    if not any(_IN_TORCH_COMPILE.search(line) for line in lines):
        return None
    said = telling_line(lines, ErrorType.UNSUPPORTED) or last
    places = [found for line in lines if (found := _PLACE.search(line))]
    if places and (said is None or said.endswith(":")):  # of an assertion without words, only its place tells
        file, number, function = places[-1].groups()
        return f"{said or 'an error without a message'} in {function} ({file}:{number})"
    return said or "an error without a message"


def is_accident(line: str) -> bool:
    """Whether a failure that this line tells of may not come again."""
    return _ACCIDENT.search(line) is not None


def telling_line(lines: Sequence[str], error_type: ErrorType, last: str | None = None) -> str | None:
    """The line that says most about a failure of this type: its own first sign, else the last exception.

    Args:
        last: the last exception, where more is known of it than its line.
    """
    for kind, pattern, _ in SIGNS:
        if kind is error_type and (own := [line for line in lines if pattern.search(line)]):
            return own[0].strip()
    raised = [line for line in lines if _SUMMARY.search(line)]
    return last or (raised[-1].strip() if raised else None)


def hint_with_log(error_type: ErrorType, log: str, advice: str = "") -> str:
    """What to do about a server's failure, and where its log is; `advice` in place of the type's own."""
    advice = advice or MEANING[error_type][1]
    if "the stage's log" in advice:
        return advice.replace("the stage's log", log)
    return f"{advice}; read {log}"
