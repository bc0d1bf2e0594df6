"""A child and its whole tree: what it says, how it ends, and that nothing of it is ever left."""

import gc
import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rayprep.base.errors import ErrorType, Interrupted, StageError
from rayprep.host.environment import CHILD_MARK, STORE_MARK
from rayprep.host.locks import acquire, is_held
from rayprep.host.process import Child, end_processes, marked_processes
from tests.host.other_user import NOBODY
from tests.host.programs import TREE, ended, next_line
from tests.needs import needs_root, needs_tool
from tests.processes import alive, wait_for

OWNER = """
import os, pathlib, sys, time
from rayprep.host.locks import acquire
from rayprep.host.process import Child
log, lock, grace, *command = sys.argv[1:]
held = acquire([pathlib.Path(lock)], "run", 60, lambda *a: None, lambda: False)
child = Child(command, os.environ, pathlib.Path(log), held.descriptors, float(grace))
print(child.guard_pid, flush=True)
for line in child.lines(time.monotonic() + 600, lambda: False, lambda: None):
    print(line, flush=True)
"""


def never() -> bool:
    return False


def nothing() -> None:
    return


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "stage.log"


@pytest.fixture
def start(log: Path) -> Callable[..., Child]:
    def started(*command: str, grace_s: float = 0.5) -> Child:
        return Child(command, os.environ, log, grace_s=grace_s)

    return started


def open_descriptors() -> int:
    gc.collect()  # or what other tests have left goes while we count
    return len(list(Path("/proc/self/fd").iterdir()))


def run(child: Child) -> tuple[list[str], int]:
    """All that the child says, and its status."""
    with child:
        said = list(child.lines(soon(), never, nothing))
        status, _ = child.end()
    return said, status


def pids(lines: Iterator[str], count: int) -> list[psutil.Process]:
    """The tree's processes, from the first `count` lines; all of them live."""
    found = [psutil.Process(int(line)) for line in itertools.islice(lines, count)]
    assert len(alive(found)) == count
    return found


Start = Callable[..., Child]


def test_lines_status_and_log(start: Start, log: Path) -> None:
    log.write_text("earlier\n", encoding="utf-8")
    said, status = run(start("sh", "-c", "echo one; echo two; echo loud >&2; printf three; exit 7"))
    assert (said, status) == (["one", "two", "three"], 7)
    assert log.read_text(encoding="utf-8") == "earlier\nloud\n"


def test_a_good_end_sends_no_kill(start: Start) -> None:
    with start("true") as child:
        list(child.lines(soon(), never, nothing))
        status, cleanup = child.end()
    assert status == 0
    assert (cleanup.kill_sent, cleanup.killed, cleanup.timeout_s) == (False, True, 0.5)
    assert child.end() == (status, cleanup), "ending twice is ending once"


def test_the_shortest_commands_status_is_never_lost(start: Start) -> None:
    """One that is over before its starter has let go of the handle: who waits for it first must not be a destructor."""
    assert [run(start("false"))[1] for _ in range(10)] == [1] * 10


def test_a_command_that_ends_by_a_signal_has_the_shells_status(start: Start) -> None:
    assert run(start("sh", "-c", "kill -9 $$"))[1] == 128 + 9


@pytest.mark.parametrize("command", ["no-such-command-anywhere", "/etc/passwd", "/"])
def test_a_command_that_cannot_be_started_is_127_with_the_reason_in_the_log(
    start: Start, log: Path, command: str
) -> None:
    with start(command) as child:
        assert list(child.lines(soon(), never, nothing)) == []
        status, cleanup = child.end()
    assert status == 127
    assert (cleanup.kill_sent, cleanup.killed) == (False, True), "there is nothing that could have been left"
    text = log.read_text(encoding="utf-8")
    assert command in text
    assert len(text.splitlines()) == 1


def test_a_log_that_cannot_be_opened_leaks_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            Child(["true"], os.environ, tmp_path / "missing" / "log")
    assert open_descriptors() == before


def test_no_descriptor_is_left_open_after_a_child(start: Start) -> None:
    run(start("true"))
    before = open_descriptors()
    for _ in range(3):
        run(start("true"))
    assert open_descriptors() == before


def test_the_users_own_modules_are_not_the_guards(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "signal", "psutil", "rayprep"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(start("echo", "fine")) == (["fine"], 0)


def test_a_child_reads_nothing_from_the_owner(start: Start) -> None:
    assert run(start("sh", "-c", "cat; echo over")) == (["over"], 0)


def test_output_that_is_not_utf8_is_still_lines(start: Start) -> None:
    said, status = run(start("printf", r"\377\376 ok\n\303\n\000x\r\nend"))
    assert said == ["\ufffd\ufffd ok", "\ufffd", "\0x\r", "end"]
    assert status == 0


def test_a_character_that_is_cut_in_two_by_the_pipe_is_whole(start: Start) -> None:
    program = "import os, time\nfor b in 'ü\\n'.encode(): os.write(1, bytes([b])); time.sleep(0.05)"
    assert run(start(sys.executable, "-c", program))[0] == ["ü"]


def test_ten_megabytes_of_lines_are_fast(start: Start) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    started = time.process_time()
    with start("sh", "-c", "yes 0123456789012345678 | head -c 10000000") as child:
        count = sum(len(line) + 1 for line in child.lines(soon(300), never, tick))
    assert count == 10_000_000
    assert time.process_time() - started < 15
    assert ticks > 0


def test_ten_megabytes_without_a_line_break_are_fast(start: Start) -> None:
    started = time.process_time()
    said, _ = run(start("sh", "-c", "yes x | tr -d '\\n' | head -c 10000000"))
    assert [len(line) for line in said] == [10_000_000]
    assert time.process_time() - started < 15


def test_ticks_come_while_nothing_is_said(start: Start) -> None:
    ticks: list[float] = []
    with start("sleep", "120") as child, pytest.raises(Interrupted):
        list(child.lines(soon(), lambda: len(ticks) >= 3, lambda: ticks.append(time.monotonic())))
    assert ticks[2] - ticks[0] > 0.2, "not in one go"


@pytest.mark.parametrize("command", [("sleep", "120"), ("yes",)], ids=["silent", "chatty"])
def test_the_deadline_ends_it(start: Start, command: tuple[str, ...]) -> None:
    with start(*command) as child:
        tree = psutil.Process(child.guard_pid)
        with pytest.raises(StageError) as caught:
            for _ in child.lines(soon(0.5), never, nothing):
                pass
        assert caught.value.error_type is ErrorType.STAGE_TIMEOUT
    assert alive([tree]) == []


@pytest.mark.parametrize("command", [("sleep", "120"), ("yes",)], ids=["silent", "chatty"])
def test_being_cancelled_ends_it(start: Start, command: tuple[str, ...]) -> None:
    asked = itertools.count()
    with start(*command) as child:
        with pytest.raises(Interrupted):
            for _ in child.lines(soon(), lambda: next(asked) > 2, nothing):
                pass
        _, cleanup = child.end()
    assert cleanup.killed
    assert alive([psutil.Process(os.getpid())]), "and only it"


HABITS = [[], ["daemon"], ["silent"], ["deaf"], ["deaf", "daemon"]]


@pytest.mark.parametrize("habits", HABITS, ids=lambda habits: "+".join(habits) or "plain")
def test_leaving_ends_the_whole_tree(start: Start, habits: list[str]) -> None:
    # Whoever hears SIGTERM ends in time, however busy this machine is.
    with start(*TREE, "3", *habits, grace_s=0.5 if "deaf" in habits else 30.0) as child:
        tree = pids(child.lines(soon(), never, nothing), 3)
        status, cleanup = child.end()
        assert alive(tree) == [], "not a moment after end() returns"
    assert cleanup.killed
    assert cleanup.kill_sent == ("deaf" in habits)
    assert status == 143


def test_what_is_born_while_the_tree_is_ended_is_ended_too(start: Start) -> None:
    with start(*TREE, "3", "respawn") as child:
        lines = child.lines(soon(), never, nothing)
        tree = pids(lines, 3)
        assert child.end()[1].killed
        born = [int(line) for line in lines]
    assert alive(tree) == []
    assert len(born) == 3, "each of them did start another one"
    assert not any(psutil.pid_exists(pid) for pid in born)


def test_what_a_finished_command_leaves_behind_is_ended(start: Start) -> None:
    """Its status is the command's own, and its output is over although others still hold it open."""
    with start("sh", "-c", "sleep 120 & echo $!; setsid sleep 120 & echo $!; exit 5") as child:
        lines = child.lines(soon(), never, nothing)
        left = [int(next(lines)), int(next(lines))]
        assert list(lines) == []
        status, cleanup = child.end()
    assert (status, cleanup.killed) == (5, True)
    assert not any(psutil.pid_exists(pid) for pid in left)


def test_an_error_in_the_owner_ends_the_tree(start: Start) -> None:
    tree: list[psutil.Process] = []
    with pytest.raises(ZeroDivisionError), start(*TREE, "2") as child:
        tree += pids(child.lines(soon(), never, nothing), 2)
        _ = 1 / 0
    assert alive(tree) == []


def start_owner(tmp_path: Path, *command: str, grace_s: float = 0.5) -> subprocess.Popen[str]:
    arguments = [str(tmp_path / "log"), str(tmp_path / "lock"), str(grace_s), *command]
    env = {**os.environ, STORE_MARK: str(tmp_path)}
    return subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True, env=env)


def family_of(owner: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The guard and the tree that an owner has named, all alive."""
    found = [psutil.Process(int(next_line(owner))) for _ in range(count + 1)]
    assert len(alive(found)) == count + 1
    return found


@pytest.mark.parametrize("habits", HABITS, ids=lambda habits: "+".join(habits) or "plain")
def test_an_owner_killed_hard_leaves_nothing_and_its_locks_hold_until_then(tmp_path: Path, habits: list[str]) -> None:
    lock = tmp_path / "lock"
    with ended(start_owner(tmp_path, *TREE, "3", *habits)) as owner:
        family = family_of(owner, 3)
        owner.kill()
        owner.wait()
        too_early: list[psutil.Process] = []

        def freed() -> bool:
            # In this order: what lives after the lock was seen free, lived when it was free.
            free = not is_held(lock)
            if free:
                too_early.extend(alive(family[1:]))
            return free

        wait_for(freed, "the lock is free", 30)
        assert too_early == []
        wait_for(lambda: not alive(family), "nothing is left", 30)


def test_an_owner_and_its_guard_killed_together_leave_what_their_mark_finds(tmp_path: Path) -> None:
    with ended(start_owner(tmp_path, *TREE, "3", "deaf", "daemon")) as owner:
        family = family_of(owner, 3)
        owner.send_signal(signal.SIGSTOP)  # so that it cannot notice that its guard is dead
        family[0].kill()
        owner.kill()
        owner.wait()
        wait_for(lambda: not alive(family[:2]), "the command went with its guard")

        def left() -> set[int]:
            return {each.pid for each in marked_processes(STORE_MARK, str(tmp_path))}

        # A daemon speaks before the one that made it has ended, which carries the mark for so long.
        wait_for(lambda: left() == {each.pid for each in family[2:]}, "what is left is what the mark finds")
        assert end_processes(marked_processes(STORE_MARK, str(tmp_path)), 0.3) == []
        assert alive(family) == []
        with acquire([tmp_path / "lock"], "next", 5, lambda *_: None, never):
            pass


@pytest.mark.parametrize("habits", [[], ["deaf", "daemon"], ["respawn"]], ids=["plain", "deaf+daemon", "respawn"])
def test_a_guard_killed_hard_is_noticed_and_its_tree_is_ended(start: Start, habits: list[str]) -> None:
    with start(*TREE, "3", *habits) as child:
        lines = child.lines(soon(), never, nothing)
        tree = pids(lines, 3)
        os.kill(child.guard_pid, signal.SIGKILL)
        started = time.monotonic()
        assert list(lines) == [], "although two of the tree hold the output open"
        assert time.monotonic() - started < 10
        environ = psutil.Process(tree[1].pid).environ()
        _, cleanup = child.end()
        assert (cleanup.kill_sent, cleanup.killed) == (True, True)
        assert alive(tree) == []
        assert marked_processes(CHILD_MARK, environ[CHILD_MARK]) == [], "nor what was started while it was ended"


def test_all_that_was_said_before_the_guard_died_is_heard(start: Start) -> None:
    with start("sh", "-c", "echo one; printf two; kill -9 $PPID; sleep 120") as child:
        assert list(child.lines(soon(), never, nothing)) == ["one", "two"]
        assert child.end()[0] == -signal.SIGKILL


def test_marks_find_only_the_processes_that_carry_exactly_them() -> None:
    unique = f"{os.getpid()}-{time.monotonic_ns()}"
    started = [
        subprocess.Popen(["sleep", "120"], env={"RAYPREP_TEST": value, "OTHER": unique})
        for value in (unique, unique + "-more", "")
    ]
    try:
        # A process that was just forked still has its parent's environment.
        wait_for(lambda: marked_processes("RAYPREP_TEST", unique), "the process has started")
        assert [each.pid for each in marked_processes("RAYPREP_TEST", unique)] == [started[0].pid]
        assert marked_processes("RAYPREP", unique) == []
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert marked_processes("RAYPREP_TEST", unique) == []


@needs_root()
@needs_tool("setpriv")
def test_a_mark_that_another_user_has_set_finds_nothing() -> None:
    """Or anybody could have their processes ended, or hold up who waits for them to end."""
    unique = secrets.token_hex(8)
    barred = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sleep", "60"]
    with ended(subprocess.Popen(barred, env={**os.environ, "RAYPREP_TEST": unique})) as process:
        status = Path(f"/proc/{process.pid}/status")
        wait_for(lambda: f"Uid:\t{NOBODY}" in status.read_text(encoding="utf-8"), "it is the other user's")
        assert f"RAYPREP_TEST={unique}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
        assert marked_processes("RAYPREP_TEST", unique) == []


def test_ending_tries_gently_first_and_then_hard() -> None:
    polite = ["sh", "-c", "trap 'echo goodbye; exit' TERM; echo up; while :; do sleep 0.05; done"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in (polite, [*TREE, "1", "deaf"])]
    outputs = [each.stdout for each in started if each.stdout]
    for output in outputs:
        output.readline()
    began = time.monotonic()
    assert end_processes([psutil.Process(each.pid) for each in started], 0.5) == []
    assert 0.5 <= time.monotonic() - began < 5, "the deaf one was given its time"
    assert [output.read() for output in outputs] == [b"goodbye\n", b""]
    assert end_processes([]) == []
    for each in started:
        each.wait()
    for output in outputs:
        output.close()


def test_one_that_nobody_reaps_is_dead() -> None:
    careless = "import subprocess, time; print(subprocess.Popen(['sleep', '120']).pid, flush=True); time.sleep(120)"
    with ended(subprocess.Popen([sys.executable, "-c", careless], stdout=subprocess.PIPE, text=True)) as parent:
        child = psutil.Process(int(next_line(parent)))
        assert end_processes([child], 5.0) == []
        assert child.status() == psutil.STATUS_ZOMBIE
