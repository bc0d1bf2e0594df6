"""The exception that a server died of, read off its log: what was raised, by which kernel, through which files.

An exception is recognised by where it stands, the first unindented line after the frames of a traceback, since its
class may have any name (`triton.runtime.errors.OutOfResources`). Several processes write the log at once, so a line
may have a piece of a progress bar before it, and another process's lines may stand between two frames.

Sources: CPython's Lib/traceback.py (chains, groups, notes) and Modules/faulthandler.c; torch/distributed's excepthook,
which begins each line with the rank; triton/runtime/jit.py (KernelInterface.__getitem__); sglang/srt/managers (`hit an
exception`) and sglang/srt/model_executor/runner_backend_utils (what it says where a capture fails).
"""

import re
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from rayprep.base.records import Record
from rayprep.base.secrets import redacted_text
from rayprep.sglang.failures import READY, ends_without_exception

CAPTURE_BAR = re.compile(r"Capturing (?:num tokens|prefill shape|batches) \(.*\| (\d{1,18})(?!\d)/(\d{1,18})(?!\d) \[")

MAX_FILES = 100
MAX_MENTIONS = 20
_MAX_PATH = 4096
_MAX_SHOWN = 500
"""Characters of an exception, and of a line of source, that are looked at."""
_LINES_AFTER = 20
"""Lines after an exception that may belong to its message."""
_PATIENCE = 20
"""Other processes' lines within a traceback, before it is taken to have no end."""

_TRACEBACK = "Traceback (most recent call last):"
_HIT = "hit an exception"
"""SGLang ends the whole server after it."""
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_UNHEEDED = ("Exception ignored in", "--- Logging error ---")
"""Python's words before the traceback of an exception that ends nothing."""
_FAULT = re.compile(r"^Fatal Python error: .*")
_FAULT_STACK = re.compile(r"^(?:(Current thread 0x|Stack \()|Thread 0x).*most recent call first\):$")
_FAULT_END = "Extension modules: "

_BAR = re.compile(r"^.*?\d{1,3}%\|[^|]*\| [^\[|]{1,60}\[[^\]]*\]")
_RANK = re.compile(r"^\[rank\d+\]: ?")
_GROUP = re.compile(r"^\s+[|+] ?")
"""The beginning of each line of an exception group."""
_GROUP_BEGINS = "+ Exception Group Traceback"
_FRAME = re.compile(r'^\s+File "([^"]+)", line \d+')
_RECORD = re.compile(r"^\[\d{4}-\d\d-\d\d ")
"""The time with which each record of SGLang's log begins."""
_RAISED = re.compile(r"^(?!(?:DEBUG|INFO|WARNING|ERROR|CRITICAL|ninja|usage):)[^\W\d][\w.<>]*(?::(?: .*)?)?$")
_LAUNCH = re.compile(r"(?<!\w)(\w+)\[(?:(?:[^\[\]]|\[[^\[\]]*\])*\]\(|[^\]]*$)")
"""`NAME[grid](`, which may go on in the next line."""
_OF_TRITON = re.compile(r"/triton/")
_RAISED_BY_TRITON = re.compile(r"^triton\.|\bTriton Error\b")
_PATH = re.compile(r"""(?<=')/[^'\n]+(?=')|(?<=")/[^"\n]+(?=")|(?<![\w/.:'"<~$-])/[^\s'"`<>|;:()\[\]{}]+""")
_LOST_PEER = re.compile(
    r"\b(?:Dist\w*Error|EOFError|BrokenPipeError|ConnectionResetError)\b"
    r"|\bNCCL\b|Connection (?:closed|reset) by|Broken pipe"
)
"""What the other ranks raise when one has died."""
_CAPTURE_EDGE = re.compile(r"\bCapture [\w ]{0,40}CUDA graph (?:(begin)|end)\.")
_CAPTURE_FAILED = re.compile(r"Capture cuda graph failed|Fail when using backend: \S+ for prefill runner")


class Death(Record):
    """The exception that a server died of."""

    exception: str
    """Its line, the first where its message has several, redacted; for a signal, `Fatal Python error: ...`."""
    kernel: str = ""
    """The Triton kernel whose launch raised; empty where none did."""
    files: tuple[str, ...] = ()
    """The file of each frame, outermost first, and behind them those of the exceptions that led to it; at most the
    innermost MAX_FILES."""
    mentions: tuple[str, ...] = ()
    """Absolute paths in its message and in those of the exceptions that led to it; the first MAX_MENTIONS."""
    while_capturing: bool = False
    """Whether CUDA graphs were being captured."""

    @property
    def line(self) -> str:
        """The kernel, where there is one, and the exception."""
        return f"{self.kernel}: {self.exception}" if self.kernel else self.exception


@dataclass
class _Trace:
    """A traceback, as far as it was heard."""

    fatal: bool = False
    """SGLang, or Python itself, ends the process after it."""
    heeded: bool = True
    cause: Death | None = None
    """The exception that it is chained to."""
    files: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_FILES))
    kernel: str = ""
    launched: str = ""
    """What the last frame called as a kernel is called; only a frame of Triton's behind it shows that it is one."""
    exception: str = ""
    mentions: list[str] = field(default_factory=list)
    while_capturing: bool = False

    def hear_frame(self, path: str) -> None:
        if self.launched and _OF_TRITON.search(path):
            self.kernel = self.launched
        self.launched = ""
        if _is_file(path):
            self.files.append(path)

    def hear_outer(self, path: str) -> None:
        if _is_file(path) and len(self.files) < MAX_FILES:
            self.files.appendleft(path)

    def hear_source(self, line: str) -> None:
        if not self.launched and (launch := _LAUNCH.search(line[:_MAX_SHOWN])):
            self.launched = launch[1]

    def end(self, line: str, while_capturing: bool) -> None:
        self.exception, self.while_capturing = line[:_MAX_SHOWN], while_capturing
        if self.launched and _RAISED_BY_TRITON.search(line):
            self.kernel = self.launched
        self.hear_message(line)

    def hear_message(self, line: str) -> None:
        for path in (match.rstrip(".,") for match in _PATH.findall(line)):
            if len(self.mentions) < MAX_MENTIONS and _is_file(path) and path not in self.mentions:
                self.mentions.append(path)

    @property
    def death(self) -> Death:
        cause = self.cause or Death(exception="")
        return Death(
            exception=self.exception,
            kernel=self.kernel or cause.kernel,
            files=(*self.files, *cause.files)[-MAX_FILES:],
            mentions=tuple(dict.fromkeys((*self.mentions, *cause.mentions)))[:MAX_MENTIONS],
            while_capturing=self.while_capturing,
        )


class _Place(Enum):
    """The part of a log that the next line belongs to."""

    OUTSIDE = auto()
    FRAMES = auto()
    MESSAGE = auto()
    FAULT = auto()


class DeathReader:
    """Hears a server's log, a line or a progress bar's piece at a time, and keeps what it died of."""

    def __init__(self) -> None:
        self.capturing = False
        """Whether CUDA graphs are being captured, as far as the log says."""
        self._ready = False
        self._place = _Place.OUTSIDE
        self._left = 0
        """Lines that may still come before the place is taken to be over."""
        self._trace = _Trace()
        self._kept: _Trace | None = None
        self._in_group = self._is_current_thread = False
        self._is_fatal = self._is_chained = self._is_unheeded = False
        """Of the next traceback."""

    @property
    def death(self) -> Death | None:
        """The last exception; after one that ends the whole server, none of those that come of its end."""
        return self._kept.death if self._kept else None

    def hear(self, line: str) -> None:
        self._note_state(line)
        line = self._bare(line)
        self._is_fatal |= _HIT in line
        if line.endswith(_TRACEBACK):
            self._begin()
        elif fault := _FAULT.match(line):
            self._begin_fault(redacted_text(fault[0]))
        elif line in _CHAINED:
            self._is_chained, self._place = True, _Place.OUTSIDE
        elif line.startswith(_UNHEEDED):
            self._is_unheeded = True
        elif line:
            self._is_unheeded = False
            self._hear_more(redacted_text(line) if self._place is not _Place.OUTSIDE else line)

    def _note_state(self, line: str) -> None:
        if READY in line:  # it lived through what was raised before
            self._ready, self._kept, self.capturing = True, None, False
        if self._kept and not self._kept.fatal and ends_without_exception(line):
            self._kept = None
        if self._ready:  # what fails is a graph's replay
            return
        if bar := CAPTURE_BAR.search(line):
            self.capturing = bar[1] != bar[2]
        elif edge := _CAPTURE_EDGE.search(line):
            self.capturing = edge[1] is not None
        elif _CAPTURE_FAILED.search(line):
            self.capturing = True

    def _bare(self, line: str) -> str:
        """A line without what is not its writer's, or stands before each of its writer's lines."""
        line = _RANK.sub("", _BAR.sub("", line) if "%|" in line else line)
        group = _GROUP.match(line)
        if line.endswith(_TRACEBACK):
            self._is_fatal |= group is not None and self._in_group and self._trace.fatal
            self._in_group = group is not None or _GROUP_BEGINS in line
        return line[group.end() :] if group and self._in_group else line

    def _begin(self) -> None:
        before, self._trace = self._trace, _Trace(self._is_fatal, not self._is_unheeded)
        if self._is_chained:
            self._trace = _Trace(before.fatal or self._is_fatal, before.heeded, before.death)
        self._is_fatal = self._is_chained = self._is_unheeded = False
        self._place, self._left = _Place.FRAMES, _PATIENCE

    def _begin_fault(self, line: str) -> None:
        self._trace = _Trace(fatal=True)
        self._trace.end(line, self.capturing)
        if self._kept is None or not self._kept.fatal:  # else it is the end of a process that was ending
            self._kept = self._trace
        self._place, self._is_current_thread = _Place.FAULT, False

    def _hear_more(self, line: str) -> None:
        if self._place is _Place.FRAMES:
            self._hear_frames(line)
        elif self._place is _Place.MESSAGE:
            self._hear_message(line)
        elif self._place is _Place.FAULT:
            self._hear_fault(line)

    def _hear_frames(self, line: str) -> None:
        if frame := _FRAME.match(line):
            self._trace.hear_frame(frame[1])
        elif line[0].isspace():
            self._trace.hear_source(line)
        elif _RAISED.match(line):
            self._end(line)
        else:
            self._count()

    def _end(self, line: str) -> None:
        self._trace.end(line, self.capturing)
        self._place, self._left = _Place.MESSAGE, _LINES_AFTER
        if self._replaces(self._trace):
            self._kept = self._trace

    def _replaces(self, trace: _Trace) -> bool:
        if self._kept is None or not self._kept.fatal:
            return trace.heeded
        return trace.fatal and not _LOST_PEER.search(trace.exception)

    def _hear_message(self, line: str) -> None:
        self._count()
        if _RECORD.match(line):
            self._place = _Place.OUTSIDE
        elif not line[0].isspace():
            self._trace.hear_message(line)

    def _hear_fault(self, line: str) -> None:
        """Hears faulthandler's stacks, the innermost frame first, and heeds that of the thread which was at fault."""
        if stack := _FAULT_STACK.match(line):
            self._is_current_thread = stack[1] is not None
        elif line.startswith(_FAULT_END):
            self._place = _Place.OUTSIDE
        elif self._is_current_thread and (frame := _FRAME.match(line)):
            self._trace.hear_outer(frame[1])

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._place = _Place.OUTSIDE


def _is_file(path: str) -> bool:
    """Whether a path names a file: not `<string>`, and nothing that no operating system takes."""
    return not path.startswith("<") and 1 < len(path) <= _MAX_PATH
