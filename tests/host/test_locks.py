"""Locks against real other processes: order, time-out, holder, inheritance, other users' files."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, LockTimeout
from rayprep.base.records import utc_now
from rayprep.host import locks
from rayprep.host.atomic import current_umask
from rayprep.host.locks import HeldLocks, Holder, acquire, acquire_run, gpu_lock_paths, is_held, read_holder
from rayprep.host.owned import OwnedTree
from tests.host.other_user import NOBODY, as_user
from tests.host.programs import ended, next_line
from tests.needs import needs_root, needs_tool
from tests.processes import wait_for

HOLDER = """
import pathlib, subprocess, sys
from rayprep.host.locks import acquire
held = acquire([pathlib.Path(p) for p in sys.argv[2:]], "run-other", 60, lambda *a: None, lambda: False)
if sys.argv[1] == "inherit":
    child = subprocess.Popen(["sleep", "120"], pass_fds=held.descriptors)
    print(child.pid, flush=True)
else:
    print("held", flush=True)
sys.stdin.read()
held.release()
"""


@contextlib.contextmanager
def held_elsewhere(*paths: Path, how: str = "plain") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the locks until its input ends."""
    command = [sys.executable, "-c", HOLDER, how, *map(str, paths)]
    with ended(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as process:
        yield process


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def take(*paths: Path, timeout_s: float = 30) -> HeldLocks:
    return acquire(paths, "run-mine", timeout_s, lambda *_: None, lambda: False)


def test_a_second_run_of_one_id_is_told_to_take_another(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with acquire_run(path, "one", lambda: False), pytest.raises(LockTimeout, match="run 'one' goes on") as caught:
        acquire_run(path, "one", lambda: False)
    assert f"pid {os.getpid()}" in caught.value.message
    assert "--timeout" not in caught.value.line
    assert "give another --run-id" in caught.value.hint


def test_a_lock_is_held_until_it_is_released_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / ".locks" / "slug.lock"
    with take(path) as held:
        assert is_held(path)
        holder = read_holder(path)
        assert holder is not None
        assert (holder.pid, holder.run_id, holder.host) == (os.getpid(), "run-mine", os.uname().nodename)
        assert len(held.descriptors) == 1
    assert not is_held(path)
    assert read_holder(path) is None, "a holder that has gone must not be blamed"


def test_releasing_twice_is_releasing_once(tmp_path: Path) -> None:
    held = take(tmp_path / "a", tmp_path / "b")
    held.release()
    held.release()
    assert held.descriptors == ()


def test_a_time_out_names_the_holder_and_lets_go_of_what_was_taken(tmp_path: Path) -> None:
    free, busy = tmp_path / "free", tmp_path / "busy"
    with held_elsewhere(busy) as other:
        assert next_line(other) == "held"
        waits: list[tuple[Path, Holder | None]] = []
        with pytest.raises(LockTimeout, match=rf"{busy} .* by pid {other.pid} on .*run-other") as caught:
            acquire([free, busy], "run-mine", 0.3, lambda path, holder, _: waits.append((path, holder)), lambda: False)
        assert caught.value.error_type is ErrorType.LOCK_TIMEOUT
        assert [(path, holder and holder.pid) for path, holder in waits] == [(busy, other.pid)]
        assert not is_held(free)
        assert is_held(busy)


def test_a_lock_is_waited_for_and_got(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as other:
        assert next_line(other) == "held"
        waiting = threading.Event()
        got: list[HeldLocks] = []
        waiter = threading.Thread(
            target=lambda: got.append(acquire([path], "me", 30, lambda *_: waiting.set(), lambda: False))
        )
        waiter.start()
        assert waiting.wait(30)
        let_go(other)
        waiter.join(30)
        assert len(got) == 1
        holder = read_holder(path)
        assert holder is not None
        assert holder.run_id == "me"
        got[0].release()


def test_a_time_out_of_nothing_still_takes_what_is_free(tmp_path: Path) -> None:
    with take(tmp_path / "lock", timeout_s=0):
        assert is_held(tmp_path / "lock")


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """A look takes the lock for a moment, and a reset beside it asks for the lock just once."""
    path, over = tmp_path / "lock", threading.Event()
    path.touch()

    def look() -> None:
        while not over.wait(0.0001):
            is_held(path)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(2000):
            take(path, timeout_s=0).release()
    finally:
        over.set()
        looker.join()


def test_a_cancelled_wait_ends_and_lets_go(tmp_path: Path) -> None:
    free, busy = tmp_path / "free", tmp_path / "busy"
    with held_elsewhere(busy) as other:
        assert next_line(other) == "held"
        cancelled = threading.Event()
        with pytest.raises(Interrupted):
            acquire([free, busy], "me", 60, lambda *_: cancelled.set(), cancelled.is_set)
        assert not is_held(free)


@needs_tool("flock")
def test_another_programs_flock_counts_and_its_holder_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = ["flock", str(path), "sh", "-c", "echo held; exec sleep 120"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as other:
        try:
            assert next_line(other) == "held"
            assert is_held(path)
            with pytest.raises(LockTimeout, match="somebody unknown"):
                take(path, timeout_s=0)
        finally:
            os.killpg(other.pid, signal.SIGKILL)


def test_a_holder_killed_hard_frees_its_lock_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as other:
        assert next_line(other) == "held"
        other.kill()
        other.wait()
        assert not is_held(path)
        stale = read_holder(path)
        assert stale is not None
        assert stale.pid == other.pid
        with take(path, timeout_s=0):
            now = read_holder(path)
            assert now is not None
            assert now.pid == os.getpid()


def test_a_lock_is_free_only_when_the_child_that_inherited_it_is_dead_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path, how="inherit") as owner:
        heir = int(next_line(owner))
        try:
            owner.kill()
            owner.wait()
            assert is_held(path)
            with pytest.raises(LockTimeout, match=f"pid {owner.pid}"):
                take(path, timeout_s=0.2)
        finally:
            os.kill(heir, signal.SIGKILL)
        wait_for(lambda: not is_held(path), "the lock is free")


COUNTER = """
import pathlib, sys
from rayprep.host.locks import acquire
locks = [pathlib.Path(sys.argv[1]) / name for name in ("slug", "store", "gpu")]
counter = pathlib.Path(sys.argv[1]) / "counter"
for _ in range(15):
    with acquire(locks, "run", 60, lambda *a: None, lambda: False):
        number = int(counter.read_text())
        counter.write_text("")
        counter.write_text(str(number + 1))
"""


def test_processes_that_take_several_locks_exclude_each_other_and_never_wait_for_ever(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0", encoding="utf-8")
    workers = [subprocess.Popen([sys.executable, "-c", COUNTER, str(tmp_path)]) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert (tmp_path / "counter").read_text(encoding="utf-8") == "45"


def test_locks_are_taken_in_the_order_given(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("z", "a", "m"))
    with held_elsewhere(second) as other:
        assert next_line(other) == "held"
        seen: list[tuple[bool, bool]] = []
        with pytest.raises(LockTimeout, match=str(second)):
            acquire(
                [first, second, third],
                "me",
                0.2,
                lambda *_: seen.append((is_held(first), third.exists())),
                lambda: False,
            )
        assert seen == [(True, False)]


def test_a_lock_file_removed_while_one_waits_does_not_let_two_in(tmp_path: Path) -> None:
    """The waiter's file is then nobody's: whoever comes next makes another one, and both would hold `the` lock."""
    path = tmp_path / "lock"
    with held_elsewhere(path) as first:
        assert next_line(first) == "held"
        waiting = threading.Event()
        got: list[HeldLocks] = []
        waiter = threading.Thread(
            target=lambda: got.append(acquire([path], "me", 30, lambda *_: waiting.set(), lambda: False))
        )
        waiter.start()
        assert waiting.wait(30)
        path.unlink()
        with held_elsewhere(path) as second:
            assert next_line(second) == "held"
            waiting.clear()
            let_go(first)
            assert waiting.wait(30), "it waits for the second holder now"
            assert got == []
            let_go(second)
            waiter.join(30)
        assert len(got) == 1
        got[0].release()


def test_the_gpu_locks_are_in_one_order_whatever_the_order_of_the_gpus() -> None:
    assert gpu_lock_paths(["GPU-b", "GPU-a"]) == gpu_lock_paths(["GPU-a", "GPU-b"])
    assert [path.name for path in gpu_lock_paths(["GPU-b", "GPU-a"])] == ["GPU-a.lock", "GPU-b.lock"]
    assert len(gpu_lock_paths(["GPU-a", "GPU-b", "GPU-a"])) == 2, "or a run would wait for itself"
    assert gpu_lock_paths([]) == []


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach, as a profiles root is."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@needs_root()
def test_another_users_read_only_lock_file_can_be_locked(shared: Path) -> None:
    path = shared / "lock"
    os.chown(shared, -1, NOBODY)
    path.touch(mode=0o640)
    os.chown(path, -1, NOBODY)

    def lock_it() -> bool:
        with contextlib.suppress(PermissionError):
            os.close(os.open(path, os.O_RDWR))
            return False  # this user could write it, and the test would prove nothing
        with take(path, timeout_s=5):
            return is_held(path)

    assert as_user(NOBODY, lock_it)
    with take(path), pytest.raises(LockTimeout, match=f"pid {os.getpid()}"):
        as_user(NOBODY, lambda: take(path, timeout_s=0.2).release())


@needs_root()
def test_who_is_not_of_the_group_cannot_hold_a_store_up(shared: Path) -> None:
    """A lock asks for nothing but that the file can be read. An earlier rayprep let everybody read it."""
    path = shared / ".locks" / "slug.lock"
    path.parent.mkdir()
    path.touch(mode=0o664)
    path.chmod(0o664)
    take(path).release()

    def lock_it(lock: Path) -> None:
        take(lock, timeout_s=0.2).release()

    for lock in (path, path.with_name("new.lock")):
        take(lock).release()
        assert lock.stat().st_mode & 0o007 == 0
        with pytest.raises(HostUnfit, match="cannot be opened"):
            as_user(NOBODY, partial(lock_it, lock))


@needs_root()
def test_a_lock_is_open_to_the_group_that_shares_the_root(shared: Path) -> None:
    """Whatever group its maker has: without the set-group-ID bit a new file has that."""
    os.chown(shared, -1, NOBODY)
    shared.chmod(0o775)
    path = shared / ".locks" / "slug.lock"
    take(path).release()
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (NOBODY, 0o660 & ~current_umask())

    def lock_it() -> bool:
        with take(path, timeout_s=5):
            return is_held(path)

    assert as_user(NOBODY, lock_it)


def test_a_lock_file_that_has_another_name_locks_and_is_not_written_to(tmp_path: Path) -> None:
    """Or whoever links it somewhere keeps everybody out; and it may be anybody's."""
    (tmp_path / "theirs").write_text("content", encoding="utf-8")
    (tmp_path / "lock").hardlink_to(tmp_path / "theirs")
    with take(tmp_path / "lock"):
        assert is_held(tmp_path / "lock")
    assert (tmp_path / "theirs").read_text(encoding="utf-8") == "content"


@needs_root()
def test_a_lock_file_that_cannot_even_be_read_is_one_line(shared: Path) -> None:
    path = shared / "lock"
    path.touch(mode=0o600)
    for ask in (lambda: take(path).release(), lambda: is_held(path)):
        with pytest.raises(HostUnfit, match=f"lock file {path} cannot be opened") as caught:
            as_user(NOBODY, ask)
        assert caught.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED


@needs_root()
def test_a_folder_where_no_lock_can_be_made_is_the_one_to_mend(shared: Path) -> None:
    with pytest.raises(HostUnfit, match="cannot be opened: Permission denied") as caught:
        as_user(NOBODY, lambda: take(shared / "new" / "lock").release())
    assert caught.value.hint.startswith(f"chmod g+rw {shared},")


@needs_root()
def test_every_user_can_add_a_gpu_lock_whoever_was_first(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.chmod(0o1777)  # as /tmp is
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    paths = {uid: gpu_lock_paths([f"GPU-{uid}"]) for uid in (NOBODY, NOBODY - 1)}

    def lock_it(mine: list[Path]) -> bool:
        os.umask(0o077)
        with take(*mine, timeout_s=5):
            return True

    for uid, mine in paths.items():
        assert as_user(uid, partial(lock_it, mine))
    assert {path.name for path in shared.iterdir()} == {"gpu-locks"}


@pytest.mark.parametrize("uuid", ["GPU-a/b", "../../etc/x", "/abs", "..", "GPU\n", ""])
def test_a_gpus_strange_uuid_closes_the_folder_to_nobody(
    shared: Path, monkeypatch: pytest.MonkeyPatch, uuid: str
) -> None:
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    with take(*gpu_lock_paths([uuid])):
        assert (shared / "gpu-locks").stat().st_mode & 0o7777 == 0o1777
        assert len(list((shared / "gpu-locks").iterdir())) == 1
        assert [path.name for path in shared.iterdir()] == ["gpu-locks"]


def test_a_folder_of_gpu_locks_that_was_left_closed_is_opened(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    (shared / "gpu-locks").mkdir(mode=0o700)
    with take(*gpu_lock_paths(["GPU-a"])):
        assert (shared / "gpu-locks").stat().st_mode & 0o7777 == 0o1777


def test_a_link_in_place_of_the_gpu_locks_is_not_followed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    (shared / "victim").mkdir()
    (shared / "gpu-locks").symlink_to(shared / "victim")
    with take(*gpu_lock_paths(["GPU-a"])) as held:
        assert (held.descriptors, len(held.warnings)) == ((), 1)
    assert not list((shared / "victim").iterdir())


def make_unreadable(path: Path) -> None:
    path.touch(mode=0o600)


@needs_root()
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), make_unreadable])
def test_nobody_keeps_others_from_a_gpu_by_what_is_no_lock(
    shared: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    first, second = gpu_lock_paths(["GPU-a", "GPU-b"])
    take(second).release()
    make(first)

    def lock_them() -> list[str]:
        with take(first, second) as held:
            assert len(held.descriptors) == 1
            return held.warnings

    (warning,) = as_user(NOBODY, lock_them)
    assert str(first) in warning


def test_the_folder_of_the_gpu_locks_is_everybodys_from_its_first_moment(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed as it makes it leaves none that is closed to all others."""
    monkeypatch.setattr(locks, "GPU_LOCKS", shared / "gpu-locks")
    modes: list[int] = []
    rename = Path.rename

    def seen(source: Path, target: Path) -> Path:
        modes.append(source.stat().st_mode & 0o7777)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", seen)
    with take(*gpu_lock_paths(["GPU-a", "GPU-b"])):
        assert (shared / "gpu-locks").stat().st_mode & 0o7777 == modes[0] == 0o1777
    assert len(modes) == 1


def test_a_link_in_place_of_a_lock_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content", encoding="utf-8")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(HostUnfit, match="cannot be opened"):
        take(tmp_path / "lock")
    assert target.read_text(encoding="utf-8") == "content"


def test_a_runs_lock_is_made_through_no_link_above_its_folder_either(tmp_path: Path) -> None:
    (tmp_path / "victim" / "r1").mkdir(parents=True)
    (tmp_path / "victim" / "r1" / ".lock").write_text("content", encoding="utf-8")
    (tmp_path / "container_runs").symlink_to(tmp_path / "victim")
    with pytest.raises(HostUnfit, match="a link, which is not followed"):
        acquire_run(tmp_path / "container_runs" / "r1" / ".lock", "r1", lambda: False, OwnedTree(tmp_path))
    assert (tmp_path / "victim" / "r1" / ".lock").read_text(encoding="utf-8") == "content"


def test_a_file_in_place_of_the_locks_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("", encoding="utf-8")
    with pytest.raises(HostUnfit, match="cannot be opened"):
        take(tmp_path / ".locks" / "slug.lock")


def test_a_lock_file_that_is_not_there_is_held_by_nobody_and_is_not_made(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"pid": 1}', b'{"host":"h","pid":1,"run_id":"r","since":"?"}']
)
def test_a_lock_file_that_says_nothing_names_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert read_holder(tmp_path / "lock") is None
    with take(tmp_path / "lock", timeout_s=0):
        assert read_holder(tmp_path / "lock") is not None


def test_a_newer_rayprep_as_holder_is_still_named(tmp_path: Path) -> None:
    holder = Holder(host="h", pid=7, run_id="r", since=utc_now())
    text = holder.model_dump_json().replace("{", '{"new_field": [1], ', 1)
    (tmp_path / "lock").write_text(text, encoding="utf-8")
    assert read_holder(tmp_path / "lock") == holder
    assert str(holder) == "pid 7 on h (run r)"
    assert 0 <= holder.held_for() < 60
    assert Holder(host="h", pid=7, run_id="r", since="2999-01-01T00:00:00Z").held_for() == 0
