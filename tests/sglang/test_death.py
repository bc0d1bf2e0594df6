"""What a server died of, read off a real log and off each form that an exception takes in one."""

import re
import time
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.sglang.death import MAX_FILES, MAX_MENTIONS, Death
from rayprep.sglang.failures import telling_line
from rayprep.sglang.log import LogReader, classify_failure

DATA = Path(__file__).parent.parent / "data"
READY = "[2026-11-21 16:40:17] The server is fired up and ready to roll!"
BAR = "Capturing batches (bs=256 avail_mem=52.59 GB):  39%|███▉      | {}/36 [00:00<00:00, 41.91it/s]"
OOR = "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 262144, Hardware limit: 232448."
HIT = "[2026-11-30 17:27:50 TP0] Scheduler hit an exception: Traceback (most recent call last):"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
PLAIN = 'Traceback (most recent call last):\n  File "/site/a.py", line 3, in f\n    g()\n'
SECOND = 'Traceback (most recent call last):\n  File "/site/b.py", line 3, in h\n    f()\n'
LAUNCH = (
    'Traceback (most recent call last):\n  File "/site/sglang/moe.py", line 9, in invoke\n    fused_moe_kernel[grid](\n'
    '  File "/site/triton/runtime/jit.py", line 370, in <lambda>\n    return lambda *args, **kwargs: self.run(\n'
)
FAULT = """Fatal Python error: Segmentation fault

Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 359 in wait
  File "/usr/lib/python3.12/threading.py", line 1032 in _bootstrap

Current thread 0x00007f02 (most recent call first):
  File "/profiles/torchinductor/ab/cab.py", line 3 in call
  File "<frozen runpy>", line 88 in _run_code
  File "/site/sglang/srt/managers/scheduler.py", line 4623 in run_scheduler_process

Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)
"""


def read(text: str) -> LogReader:
    """As a log is followed: a reader is given its lines, and a progress bar's pieces."""
    reader = LogReader()
    for line in re.split(r"[\r\n]+", text):
        reader.hear(line)
    return reader


def death_of(text: str) -> Death:
    death = read(text).death
    assert death is not None
    return death


def test_a_real_log() -> None:
    reader = read((DATA / "server-out-of-resources.log").read_bytes().decode())
    death = reader.death
    assert death is not None
    assert death.exception == f"{OOR} Reducing block sizes or `num_stages` may help."
    assert death.line == f"fused_moe_kernel: {death.exception}"
    assert death.while_capturing
    assert len(death.files) == 44
    assert death.files[0] == "/tmp/site-0.5.16/sglang/srt/managers/scheduler.py"
    assert death.files[-1] == "/opt/torch/.venv/lib/python3.12/site-packages/triton/compiler/compiler.py"
    assert death.mentions == ()


def test_a_kernel_that_asks_for_too_much_is_no_lack_of_gpu_memory() -> None:
    reader = read((DATA / "server-out-of-resources.log").read_bytes().decode())
    assert not (reader.out_of_memory or reader.wants_more_memory)
    assert classify_failure(reader.signs, 137) is ErrorType.SERVER_START_FAILED


@pytest.mark.parametrize("name", ["server-cold.log", "server-warm.log"])
def test_a_server_that_lived_has_none(name: str) -> None:
    reader = read((DATA / name).read_bytes().decode())
    assert (reader.death, reader.capturing) == (None, False)


@pytest.mark.parametrize(
    "line",
    [
        "KeyError: \"Unknown key: 'cubin'\"",
        "AssertionError",
        "pkg.Lost: of no usual name",
        "pkg.make.<locals>.Lost",
        "RuntimeError:",
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        OOR,
    ],
)
@pytest.mark.parametrize("begin", ["", "[2026-11-30 17:27:49] ", "[2026-11-30 17:27:49 TP0] ", "ERROR:    "])
def test_an_exception_is_known_by_its_place(line: str, begin: str) -> None:
    assert death_of(f"{begin}{PLAIN}{line}\n").exception == line


@pytest.mark.parametrize(
    ("text", "exception", "files"),
    [
        (
            PLAIN + "    ^^^\n  [Previous line repeated 996 more times]\nRecursionError: maximum depth\n",
            "RecursionError: maximum depth",
            ("/site/a.py",),
        ),
        (
            PLAIN + '  File "/site/bad.py", line 3\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n',
            "SyntaxError: invalid syntax",
            ("/site/a.py", "/site/bad.py"),
        ),
        (
            PLAIN + '  File "<frozen importlib._bootstrap>", line 1, in f\n  File "<string>", line 1\nKeyError: 1\n',
            "KeyError: 1",
            ("/site/a.py",),
        ),
        (
            PLAIN + "RuntimeError: CUDA error: misaligned address\nCUDA kernel errors might be asynchronously "
            "reported at some other API call.\n"
            "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\nError: none\n",
            "RuntimeError: CUDA error: misaligned address",
            ("/site/a.py",),
        ),
        (PLAIN + "ValueError: 1\na note that was added\n", "ValueError: 1", ("/site/a.py",)),
        (
            PLAIN + "ValueError: 1\n" + DURING + SECOND + "OSError: 2\n",
            "OSError: 2",
            ("/site/b.py", "/site/a.py"),
        ),
        (PLAIN + "ValueError: 1\n" + CAUSE + SECOND + "OSError: 2\n", "OSError: 2", ("/site/b.py", "/site/a.py")),
        (PLAIN + "ValueError: 1\n" + SECOND + "OSError: 2\n", "OSError: 2", ("/site/b.py",)),
        (
            # concurrent.futures.process
            'x.process._RemoteTraceback: \n"""\n' + PLAIN + 'ValueError: 1\n"""\n' + CAUSE + SECOND + "ValueError: 1\n",
            "ValueError: 1",
            ("/site/b.py", "/site/a.py"),
        ),
        (
            "".join(f"[rank0]: {line}\n" for line in (PLAIN + "pkg.Lost: x").splitlines()),
            "pkg.Lost: x",
            ("/site/a.py",),
        ),
        (
            PLAIN + "        | other\n        + more\nTypeError: of two lines of source\n",
            "TypeError: of two lines of source",
            ("/site/a.py",),
        ),
    ],
)
def test_the_forms_of_a_traceback(text: str, exception: str, files: tuple[str, ...]) -> None:
    death = death_of(text)
    assert (death.exception, death.files) == (exception, files)


@pytest.mark.parametrize("begin", ["", "[2026-11-30 17:27:50] Scheduler hit an exception: "])
def test_of_a_group_the_last_of_its_exceptions_is_told(begin: str) -> None:
    text = """  + Exception Group Traceback (most recent call last):
  |   File "/site/a.py", line 3, in <module>
  |     raise ExceptionGroup("eg", errors)
  | ExceptionGroup: eg (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | ValueError: 1
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "/site/b.py", line 4, in f
    |     raise Lost()
    | pkg.Lost: /cache/x.so: file too short
    +------------------------------------
"""
    death = death_of(begin + text)
    assert (death.exception, death.files) == ("pkg.Lost: /cache/x.so: file too short", ("/site/b.py",))
    assert death.mentions == ("/cache/x.so",)


@pytest.mark.parametrize(
    "source",
    [
        "fused_moe_kernel[grid](",
        "out = fused_moe_kernel[(batch, heads)](x, y)",
        "outs[0] = fused_moe_kernel[lambda META: (cdiv(n, META['BLOCK']),)](",
        "self.fused_moe_kernel[grid](",
        "fused_moe_kernel[",
        "fused_moe_kernel[grid](\n        table[0](1),",
    ],
)
def test_the_kernel_is_what_was_launched(source: str) -> None:
    text = LAUNCH.replace("fused_moe_kernel[grid](", source)
    assert death_of(f"{text}{OOR}\n").kernel == "fused_moe_kernel"
    cut = text[: text.index('  File "/site/triton')]
    assert death_of(f"{cut}{OOR}\n").kernel == "fused_moe_kernel", "another rank's lines stand for the last frames"


def test_what_only_looks_like_a_launch_names_no_kernel() -> None:
    called = PLAIN.replace("g()", "self._dispatch[type(request)](request)")
    assert death_of(f"{called}KeyError: 1\n").kernel == ""
    deeper = f'{called}  File "/site/sglang/srt/managers/scheduler.py", line 9, in handle\n'
    assert death_of(f"{deeper}KeyError: 1\n").kernel == ""
    assert death_of(f"{PLAIN}KeyError: 1\n").line == "KeyError: 1"


def test_the_kernel_of_the_exception_that_led_to_the_last_is_told() -> None:
    last = "Exception: Capture cuda graph failed: Triton Error [CUDA]: invalid argument\nPossible solutions:\n"
    death = death_of(LAUNCH + "RuntimeError: Triton Error [CUDA]: invalid argument\n" + DURING + SECOND + last)
    assert death.line == f"fused_moe_kernel: {last.splitlines()[0]}"
    assert death.files == ("/site/b.py", "/site/sglang/moe.py", "/site/triton/runtime/jit.py")
    assert death.while_capturing


@pytest.mark.parametrize(
    ("message", "mentions"),
    [
        (
            "OSError: /prof/flashinfer/.cache/cached_ops/norm/norm.so: file too short",
            ("/prof/flashinfer/.cache/cached_ops/norm/norm.so",),
        ),
        (
            "RuntimeError: Check failed\nFailed to load dynamic shared library /x/y.so /x/y.so: invalid ELF header",
            ("/x/y.so",),
        ),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/p/E=8,block_shape=[128, 128].json'",
            ("/p/E=8,block_shape=[128, 128].json",),
        ),
        ("ValueError: see https://github.com/x and and/or 1/2, nvcc -I/usr/include", ()),
        ("ValueError: 1\n[2026-11-30 17:27:50] Using MoE kernel config from /p/E=8.json.", ()),
        ("ValueError: 1\n    /indented/source.py\nin /p/a.", ("/p/a",)),
        (f"OSError: /a/1.so: bad\n{CAUSE}{PLAIN}RuntimeError: cannot load '/a/2.so'", ("/a/2.so", "/a/1.so")),
    ],
)
def test_the_paths_of_its_message(message: str, mentions: tuple[str, ...]) -> None:
    assert death_of(f"{PLAIN}{message}\n").mentions == mentions


@pytest.mark.parametrize("glued", ["", BAR.format(14)])
def test_a_signal_that_python_noticed(glued: str) -> None:
    death = death_of(glued + FAULT)
    assert death.exception == "Fatal Python error: Segmentation fault"
    assert death.files == ("/site/sglang/srt/managers/scheduler.py", "/profiles/torchinductor/ab/cab.py")
    assert death.while_capturing is bool(glued)


@pytest.mark.parametrize(
    ("text", "capturing"),
    [
        (BAR.format(14) + "\n", True),
        (BAR.format(36) + "\n", False),
        (BAR.format(36) + "\r" + BAR.format(1) + "\n", True),
        ("[2026-11-21 16:40:08] Capture target prefill CUDA graph begin. backend=breakable, num_tokens=[4]\n", True),
        (BAR.format(14) + "\n[2026-11-21 16:40:14] Capture target prefill CUDA graph end. elapsed=6.76 s\n", False),
        ("KeyError: x\nFail when using backend: breakable for prefill runner.\n", True),
        (f"{BAR.format(14)}\n{READY}\nFail when using backend: breakable for prefill runner.\n", False),
        ("", False),
    ],
)
def test_whether_it_was_capturing(text: str, capturing: bool) -> None:
    reader = read(f"{text}{HIT}\n  File \"/a.py\", line 1, in f\nKeyError: 'x'\n")
    assert reader.death is not None
    assert (reader.death.while_capturing, reader.capturing) == (capturing, capturing)


@pytest.mark.parametrize(
    "consequence",
    [
        f'{HIT}\n  File "/a.py", line 1, in f\ntorch.distributed.DistBackendError: NCCL error in: x.cpp:3690\n',
        f'{HIT}\n  File "/a.py", line 1, in f\nRuntimeError: [gloo/pair.cc:544] Connection closed by peer [::1]\n',
        PLAIN + "RuntimeError: Rank 0 scheduler died during initialization (exit code: -3).\n",
        f"Exception ignored in: <function Pool.__del__ at 0x7f>\n{PLAIN}ResourceWarning: unclosed\n",
        FAULT,
        FAULT.replace("Segmentation fault", "Aborted"),
    ],
)
def test_what_comes_of_the_end_does_not_hide_its_cause(consequence: str) -> None:
    raised = LAUNCH.replace("Traceback", "Scheduler hit an exception: Traceback")
    death = death_of(f"{raised}{OOR}\n\n{consequence}")
    assert (death.line, len(death.files)) == (f"fused_moe_kernel: {OOR}", 2)
    assert death_of(f"{FAULT}{PLAIN}ValueError: later\n").exception == "Fatal Python error: Segmentation fault"


def test_a_rank_that_lost_its_peer_first_does_not_hide_the_cause() -> None:
    lost = f'{HIT}\n  File "/a.py", line 1, in f\ntorch.distributed.DistBackendError: NCCL error\n'
    assert death_of(f'{lost}{HIT}\n  File "/a.py", line 1, in f\nKeyError: 1\n').exception == "KeyError: 1"


@pytest.mark.parametrize(
    "harmless",
    [
        f"Exception ignored in: <function Pool.__del__ at 0x7f>\n{PLAIN}ResourceWarning: unclosed\n",
        f"--- Logging error ---\n{PLAIN}BrokenPipeError: [Errno 32] Broken pipe\n",
    ],
)
def test_an_exception_that_ends_nothing_is_not_heeded(harmless: str) -> None:
    assert read(harmless).death is None
    assert death_of(f"{PLAIN}ValueError: 1\n{harmless}").exception == "ValueError: 1"
    bare = harmless.replace(PLAIN, "")
    assert death_of(f"{bare}{PLAIN}ValueError: 1\n").exception == "ValueError: 1", "it had no traceback"


def test_what_it_lived_through_is_not_what_it_died_of() -> None:
    assert read(f"{PLAIN}ValueError: 1\n{READY}\n").death is None
    timeout = "[2026-11-30 17:27:50] Scheduler watchdog timeout (self.watchdog_timeout=300, soft=False)"
    reader = read(f"{PLAIN}ValueError: 1\n{timeout}\n")
    assert reader.death is None
    assert telling_line(reader.signs, ErrorType.SERVER_START_FAILED) == timeout


def test_the_lines_of_others_may_stand_between() -> None:
    frames = LAUNCH.splitlines()
    others = [f"{BAR.format(3)}", "[2026-11-30 17:27:50 TP1] Load weight begin.", "ninja: no work to do.", "INFO: up"]
    mixed = "\n".join(line for frame in frames for line in (frame, *others[:2]))
    death = death_of(f"{mixed}\n{others[2]}\n{others[3]}\n{BAR.format(4)}{OOR}\n")
    assert death.line == f"fused_moe_kernel: {OOR}"
    assert len(death.files) == 2


def test_a_traceback_without_an_end_ends() -> None:
    others = "\n".join(f"[2026-11-30 17:27:50] line {number}" for number in range(30))
    assert read(f"{PLAIN}{others}\nDone: all is well\n").death is None


def test_no_secret_is_kept() -> None:
    death = death_of(f"{PLAIN}ValueError: bad ServerArgs(api_key='sk-1') at redis://:hush@host/x\n")
    assert "sk-1" not in death.model_dump_json()
    assert "hush" not in death.model_dump_json()


def test_what_is_kept_is_bounded() -> None:
    frames = "".join(f'  File "/site/{number}.py", line 3, in f\n' for number in range(1000))
    message = "ValueError: " + "x" * 2000 + " ".join(f"/{number}" for number in range(1000))
    death = death_of(f"Traceback (most recent call last):\n{frames}{message}\n" + "/more\n" * 1000)
    assert (len(death.files), death.files[-1]) == (MAX_FILES, "/site/999.py")
    assert len(death.exception) == 500
    assert len(death.mentions) == MAX_MENTIONS
    chain = (f"{PLAIN}OSError: /{number}.so\n{DURING}" for number in range(200))
    chained = death_of("".join(chain) + SECOND + "ValueError: last\n")
    assert (chained.exception, len(chained.files), len(chained.mentions)) == ("ValueError: last", 100, 20)
    fault = death_of(FAULT.replace('  File "<frozen', frames.replace(", in", " in") + '  File "<frozen'))
    assert (len(fault.files), fault.files[-1]) == (MAX_FILES, "/profiles/torchinductor/ab/cab.py")


@pytest.mark.parametrize("part", ["Capture ", "1%|", 'File "', "a[", "'/", "/x", "Capturing batches (", "x."])
def test_no_line_takes_long(part: str) -> None:
    reader = read(PLAIN)
    started = time.process_time()
    for begin in ("", "    ", "  "):
        reader.hear(begin + part * 16_000)
    assert time.process_time() - started < 1


def test_the_last_exception_is_told_where_no_sign_says_more() -> None:
    full = read(f"OSError: [Errno 28] No space left on device\n{PLAIN}{OOR}\n")
    death = full.death
    assert death is not None
    assert telling_line(full.signs, ErrorType.INSUFFICIENT_DISK, death.line) == full.signs[0]
    assert telling_line(full.signs, ErrorType.SERVER_CRASHED, death.line) == OOR
