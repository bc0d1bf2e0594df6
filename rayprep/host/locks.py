"""Locks of one host, that are free only when their holder's whole process tree is dead.

A lock is flock(2) on a file, so it belongs to the open file and not to a process: the guard of a process tree
inherits the descriptors, and the lock lives until the last of them is closed. Where owner and guard are both killed
hard, the next holder finds what is left of the tree by its mark (environment.STORE_MARK) and ends it first. The
file's content names the holder, for people; only the kernel says whether it is held.
"""

import contextlib
import errno
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from filelock import lock_descriptor
from pydantic import ValidationError

from rayprep.base.errors import ErrorType, HostUnfit, Interrupted, LockTimeout
from rayprep.base.file_names import file_name
from rayprep.base.records import Record, Utc, parse_utc, read_tolerant, utc_now
from rayprep.host.files import open_file, read_whole
from rayprep.host.layout import STORE_LOCK, nearest
from rayprep.host.owned import OwnedTree

POLL_S = 0.2
GPU_LOCKS = Path("/tmp/rayprep-gpu-locks")
_EVERYBODYS = 0o1777
HEARTBEAT_S = 30.0
"""Between two reports of a wait, as the contract has it."""
LOOK_S = 1.0
"""Who only asks whether a lock is held holds it for a moment, and nobody is refused for that, however busy a host."""
_LOOK_POLL_S = 0.01
_LONGEST_HOLDER = 4096
"""Bytes."""
_GROUP_ONLY = 0o660
"""The mode of a store's lock file: whoever may read it can lock it, and a store is its group's alone."""


class Holder(Record):
    """Who holds a lock."""

    host: str
    pid: int
    run_id: str
    since: Utc

    def held_for(self) -> float:
        return max(0.0, time.time() - parse_utc(self.since).timestamp())

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} (run {self.run_id})"


def read_holder(path: Path) -> Holder | None:
    """What the lock file says, or None where it says nothing that can be read."""
    try:
        descriptor = open_file(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return read_tolerant(Holder, read_whole(descriptor, str(path), _LONGEST_HOLDER))
        finally:
            os.close(descriptor)
    except (OSError, ValidationError):
        return None


class HeldLocks:
    """Locks that this process holds. `descriptors` are for the guards that must hold them too."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self.warnings: list[str] = []
        """One for each lock that was left out."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(self._files.values())

    def add(self, path: Path, descriptor: int) -> None:
        self._files[path] = descriptor

    def release(self) -> None:
        """Gives all locks back, the last taken first."""
        for descriptor in reversed(self._files.values()):
            # Without the name a later reader would blame a holder that has long gone.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> "HeldLocks":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


OnWait = Callable[[Path, Holder | None, float], None]
"""Called with the lock's path, its holder if known, and the seconds waited so far."""


def acquire(
    paths: Iterable[Path],
    run_id: str,
    timeout_s: float,
    on_wait: OnWait,
    cancelled: Callable[[], bool],
    tree: OwnedTree | None = None,
) -> HeldLocks:
    """Takes all locks, in the order given; callers all use one order, so two of them never wait for each other.

    Args:
        tree: what the locks lie in, but for those of GPUs; null: the folder above a lock's own.

    Raises:
        LockTimeout: somebody held one of them for `timeout_s` seconds, and for longer than a look takes.
        Interrupted: `cancelled()` became true.
        HostUnfit: a lock file cannot be made or read. That of a GPU is left out, with a warning.
    """
    held = HeldLocks()
    deadline = time.monotonic() + max(timeout_s, LOOK_S)
    try:
        for path in paths:
            try:
                held.add(path, _acquire_one(tree, path, run_id, deadline, on_wait, cancelled))
            except HostUnfit as error:
                # Every user of the host can put something there, and is not to keep the others from their GPUs.
                if path.parent != GPU_LOCKS:
                    raise
                held.warnings.append(f"{error.line}: another run could use this GPU meanwhile")
    except BaseException:
        held.release()
        raise
    return held


def acquire_run(path: Path, run_id: str, cancelled: Callable[[], bool], tree: OwnedTree | None = None) -> HeldLocks:
    """The lock of a run's own files, at once or not at all: to wait for it would be to write over what it wrote.

    Raises:
        LockTimeout: a run of this id goes on.
        HostUnfit: the lock file cannot be made or read.
    """
    try:
        return acquire([path], run_id, 0, lambda *_: None, cancelled, tree)
    except LockTimeout:
        message = f"run {run_id!r} goes on already: lock {path} is held by {read_holder(path) or 'somebody unknown'}"
        raise LockTimeout(message, hint="give another --run-id, or wait for that run") from None


def _acquire_one(
    tree: OwnedTree | None,
    path: Path,
    run_id: str,
    deadline: float,
    on_wait: OnWait,
    cancelled: Callable[[], bool],
) -> int:
    while True:
        descriptor = _open(tree, path)
        try:
            _wait(descriptor, path, deadline, on_wait, cancelled)
            if _lies_at(descriptor, path):
                _sign(descriptor, run_id)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Somebody removed the file while we waited: whoever comes next locks another one, and we keep nobody out.
        os.close(descriptor)


def _wait(descriptor: int, path: Path, deadline: float, on_wait: OnWait, cancelled: Callable[[], bool]) -> None:
    """Returns when the lock is ours."""
    started, reported = time.monotonic(), -HEARTBEAT_S
    while not _try(descriptor, path):
        waited = time.monotonic() - started
        if cancelled():
            raise Interrupted
        if time.monotonic() >= deadline:
            holder = read_holder(path) or "somebody unknown"
            raise LockTimeout(f"lock {path} still held after {waited:.0f} s by {holder}")
        if waited - reported >= HEARTBEAT_S:
            on_wait(path, read_holder(path), waited)
            reported = waited
        time.sleep(POLL_S if waited > LOOK_S else _LOOK_POLL_S)


def _try(descriptor: int, path: Path) -> bool:
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:  # a network file system that knows no locks
        raise _unfit(path, "locked", error) from None


def _lies_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _open(tree: OwnedTree | None, path: Path) -> int:
    of_gpu = path.parent == GPU_LOCKS
    try:
        with (
            _gpu_locks(path.parent)
            if of_gpu
            else (tree or OwnedTree(path.parent.parent)).folder(path.parent, make=True) as folder
        ):
            descriptor = _open_in(folder, path.name, 0o666 if of_gpu else _GROUP_ONLY)
            if not of_gpu:
                _leave_to_the_group(descriptor, os.fstat(folder).st_gid)
        return descriptor
    except OSError as error:
        raise _unfit(path, "opened", error) from None


def _open_in(folder: int, name: str, mode: int) -> int:
    try:
        return open_file(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, folder=folder, mode=mode)
    except OSError as error:
        # Another user's lock file can be locked too: flock asks for no write permission. One that has another name
        # is not written to: it may be anybody's.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EMLINK):
            raise
        try:
            return open_file(name, os.O_RDONLY | os.O_NOFOLLOW, folder=folder)
        except FileNotFoundError:
            raise error from None


def _leave_to_the_group(descriptor: int, group: int) -> None:
    """Have our own lock file open to the group of its folder alone: a stranger's lock would hold up every build.

    Where it cannot be given to that group everybody may read it, or the group's other members could not lock.
    """
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_nlink > 1:
        return
    with contextlib.suppress(OSError):  # this user is not of that group
        if status.st_gid != group:
            os.fchown(descriptor, -1, group)
    others = 0 if os.fstat(descriptor).st_gid == group else stat.S_IROTH
    if (wanted := stat.S_IMODE(status.st_mode) & ~stat.S_IRWXO | others) != stat.S_IMODE(status.st_mode):
        os.fchmod(descriptor, wanted)


@contextlib.contextmanager
def _gpu_locks(folder: Path) -> Iterator[int]:
    """Open the folder to which every user of the host can add a lock, whoever made it, or make it."""
    if not os.path.lexists(folder):
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        fresh.chmod(
            _EVERYBODYS
        )  # before it has its name: who is killed in between leaves none that is closed to others
        try:
            fresh.rename(folder)
        except OSError:  # somebody was faster
            fresh.rmdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_IMODE(status.st_mode) != _EVERYBODYS and status.st_uid == os.geteuid():
            os.fchmod(descriptor, _EVERYBODYS)
        yield descriptor
    finally:
        os.close(descriptor)


def _unfit(path: Path, what: str, error: OSError) -> HostUnfit:
    return HostUnfit(
        f"lock file {path} cannot be {what}: {error.strerror}",
        hint=f"chmod g+rw {nearest(path, Path('/'))}, or choose another root",
        error_type=ErrorType.PERMISSIONS_UNEXPECTED,
    )


def _sign(descriptor: int, run_id: str) -> None:
    holder = Holder(host=socket.gethostname(), pid=os.getpid(), run_id=run_id, since=utc_now())
    with contextlib.suppress(OSError):  # another user's file, or a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.model_dump_json().encode(), 0)


def lock_of(path: Path) -> str | None:
    """What a lock stands for, in words, where it is not one model's."""
    if path.parent == GPU_LOCKS:
        return "this host's GPUs"
    return "another build on this profiles root" if path.name == STORE_LOCK else None


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock now. A file that is not there is held by nobody.

    Raises:
        HostUnfit: the file cannot be read, so there is no telling.
    """
    try:
        descriptor = open_file(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unfit(path, "opened", error) from None
    try:
        return not _try(descriptor, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_if_free(path: Path, tree: OwnedTree) -> Iterator[bool]:
    """Holds a lock that nobody holds, and does not wait for any other. Yields whether it is held."""
    try:
        descriptor = _open(tree, path)
    except HostUnfit:
        yield False
        return
    try:
        yield _is_ours(descriptor, path)
    finally:
        os.close(descriptor)


def _is_ours(descriptor: int, path: Path) -> bool:
    try:
        return _try(descriptor, path) and _lies_at(descriptor, path)
    except HostUnfit:
        return False


def gpu_lock_paths(uuids: Sequence[str]) -> list[Path]:
    """One lock for each GPU, by UUID, in one order. They belong to the host, whatever root is used."""
    return [GPU_LOCKS / f"{file_name(uuid)}.lock" for uuid in sorted(set(uuids))]
