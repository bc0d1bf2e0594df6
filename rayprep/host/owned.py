"""What rayprep owns below a root: reached through descriptors, never through a link, and never if it is a stranger's.

A group may share a root, and write in it. So each folder on the way from the root to a file is opened by itself,
without following a link, and looked at; what is done then goes through its descriptor. Nobody can put a link in
between, neither before nor while we work. The root itself may be behind links: that is how a site moves its storage.

Whom we trust is the root's owner, its group where the group may write in it, root, and this user. A folder that
anybody may write to is trusted only if the root is open to all as well, which `doctor` and each run say.
"""

import contextlib
import errno
import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.host.atomic import write_in
from rayprep.host.files import LARGEST_BYTES, open_file, read_whole

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REFUSALS = (errno.ELOOP, errno.ENOTDIR, errno.EPERM)


class OwnedTree:
    """One root, and what lies below it. All paths are absolute, and below the root by their names."""

    def __init__(self, root: Path, *, strict: bool = True) -> None:
        """`strict` trusts no folder of a stranger's; without, folders have to be plain, as those of the caches are."""
        self.root, self._strict = root, strict

    @contextlib.contextmanager
    def folder(self, path: Path, *, make: bool = False, mode: int = 0o777) -> Iterator[int]:
        """The folder's descriptor, for as long as the block runs.

        Args:
            make: make it, and what is missing above it, the root included.
            mode: of the folder itself where it is made, less the umask.

        Raises:
            OSError: there is none, or it or one above it is a link (ELOOP), no folder (ENOTDIR), or not to be trusted
                (EPERM).
        """
        descriptor = self._root(make=make)
        try:
            top = os.fstat(descriptor)
            place = self.root
            for part in _parts(path, self.root):
                place /= part
                inner = _enter(descriptor, place, (mode if place == path else 0o777) if make else None)
                os.close(descriptor)
                descriptor = inner
                if self._strict and (why := _distrust(os.fstat(descriptor), top)):
                    raise PermissionError(errno.EPERM, why, str(place))
            yield descriptor
        finally:
            os.close(descriptor)

    def _root(self, *, make: bool) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.open(self.root, _FOLDER)
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        return os.open(self.root, _FOLDER)

    def refuse_strange(self, *paths: Path) -> None:
        """Look at folders that are there before any of them is used.

        Raises:
            HostUnfit: one of them is a link, no folder, or not to be trusted; it is named.
        """
        for path in paths:
            try:
                with self.folder(path):
                    pass
            except FileNotFoundError:
                continue
            except OSError as error:
                raise_refused(error)

    def make(self, path: Path, mode: int = 0o777) -> None:
        """Make a folder and what is missing above it. Raises OSError, as `folder`."""
        with self.folder(path, make=True, mode=mode):
            pass

    def names(self, path: Path) -> list[str]:
        """List a folder, sorted; empty where there is none. Raises OSError, as `folder`."""
        try:
            with self.folder(path) as descriptor:
                return sorted(os.listdir(descriptor))  # noqa: PTH208 - pathlib takes no descriptor
        except FileNotFoundError:
            return []

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open a regular file that is no link, or make it where `flags` say so, with its folder. Raises OSError."""
        with self.folder(path.parent, make=bool(flags & os.O_CREAT)) as folder, _named(path):
            return open_file(path.name, flags | os.O_NOFOLLOW, folder=folder, mode=mode)

    def read(self, path: Path, most: int = LARGEST_BYTES) -> bytes:
        """Read a whole file. Raises OSError where there is none, or it has more than `most` bytes."""
        descriptor = self.open(path, os.O_RDONLY)
        try:
            return read_whole(descriptor, str(path), most)
        finally:
            os.close(descriptor)

    def write(self, path: Path, data: str | bytes, changed_at: float | None = None) -> None:
        """Write a file as `atomic.write_in` does, with its folder where that is missing. Raises OSError."""
        with self.folder(path.parent, make=True) as folder, _named(path):
            write_in(folder, path.name, data.encode() if isinstance(data, str) else data, changed_at)

    def status(self, path: Path) -> os.stat_result:
        """Look at whatever lies there, itself and not where it leads. Raises OSError."""
        with self.folder(path.parent) as folder, _named(path):
            return os.stat(path.name, dir_fd=folder, follow_symlinks=False)

    def is_file(self, path: Path) -> bool:
        """Tell whether a regular file is there. False as well where that cannot be told."""
        with contextlib.suppress(OSError):
            return stat.S_ISREG(self.status(path).st_mode)
        return False

    def touch(self, path: Path) -> None:
        """Set its time of change to now. Raises OSError."""
        with self.folder(path.parent) as folder, _named(path):
            os.utime(path.name, dir_fd=folder, follow_symlinks=False)

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        """Remove a file or a link, itself. Raises OSError."""
        try:
            with self.folder(path.parent) as folder, _named(path):
                os.unlink(path.name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder. Raises OSError."""
        with self.folder(path.parent) as folder, _named(path):
            os.rmdir(path.name, dir_fd=folder)

    def remove(self, path: Path) -> None:
        """Remove a folder with all that is in it, and whatever else has the name. Nothing where there is nothing.

        Raises:
            OSError: something of it cannot be removed, or the way to it is not to be trusted.
        """
        try:
            with self.folder(path.parent) as folder, _named(path):
                _remove_in(folder, path.name)
        except FileNotFoundError:
            return

    def rename(self, source: Path, target: Path) -> None:
        """Move what lies there; a file in its new place is replaced. Raises OSError."""
        with self.folder(source.parent) as left, self.folder(target.parent) as right, _named(source):
            os.rename(source.name, target.name, src_dir_fd=left, dst_dir_fd=right)

    def link(self, path: Path, target: str, aside: str) -> None:
        """Put a symbolic link to `target` at `path`, in one step, by way of the name `aside`. Raises OSError."""
        with self.folder(path.parent, make=True) as folder, _named(path):
            os.symlink(target, aside, dir_fd=folder)
            try:
                os.rename(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(aside, dir_fd=folder)
                raise


class Places:
    """Folders below one root, of which the last is kept open: for thousands of files that come by folder.

    A context manager.
    """

    def __init__(self, tree: OwnedTree) -> None:
        self._tree, self._stack, self._last, self._descriptor = tree, contextlib.ExitStack(), "", -1

    def folder(self, path: str, *, make: bool = False) -> int:
        """The folder's descriptor, which is open until another is asked for. Raises OSError, as `OwnedTree.folder`."""
        if path != self._last:
            self.forget()
            self._descriptor = self._stack.enter_context(self._tree.folder(Path(path), make=make))
            self._last = path
        return self._descriptor

    def forget(self) -> None:
        """Let the folder go: it may have been removed."""
        self._stack.close()
        self._last = ""

    def __enter__(self) -> "Places":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def raise_refused(error: OSError) -> None:
    """Raise HostUnfit where the error is that a place is a link, no folder, or not to be trusted."""
    if error.errno in _REFUSALS:
        raise HostUnfit(
            f"{error.filename} is not used: {error.strerror}",
            hint="move it away, or choose another root",
            error_type=ErrorType.PERMISSIONS_UNEXPECTED,
        ) from None


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).parts
    if ".." in parts:
        raise OSError(errno.ELOOP, "it lies outside its root", str(path))
    return parts


def _enter(folder: int, place: Path, mode: int | None) -> int:
    """Open the folder at `place`, which lies in `folder`, by itself. With a mode it is made where it is missing."""
    name = place.name
    with _named(place):
        if mode is not None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=folder)
                _share(name, folder)
        try:
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            # Linux says ENOTDIR of a link, too.
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                kind = stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
                if kind == stat.S_IFLNK:
                    raise OSError(errno.ELOOP, "it is a link, which is not followed", str(place)) from None
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place)) from None
            raise


def _share(name: str, folder: int) -> None:
    """Give a new folder the group of the one that it is in, as the set-group-ID bit would."""
    with contextlib.suppress(OSError):  # this user is not of that group
        group = os.fstat(folder).st_gid
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_gid != group:
            os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)


def _distrust(folder: os.stat_result, root: os.stat_result) -> str | None:
    """Say why a folder below the root is not to be used; None where it may be."""
    open_to_all = root.st_mode & stat.S_IWOTH
    if folder.st_mode & stat.S_IWOTH and not open_to_all:
        return "everybody may write to it (chmod o-w it)"
    of_the_group = folder.st_gid == root.st_gid and root.st_mode & stat.S_IWGRP and not open_to_all
    if folder.st_uid in (os.geteuid(), 0, root.st_uid) or of_the_group:
        return None
    return f"it belongs to {user_name(folder.st_uid)}, who neither owns the root nor shares it by its group"


def why_strange(folder: int) -> str | None:
    """Say why an open folder is not one that this user has made for itself; None where it is."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        return f"it belongs to {user_name(status.st_uid)}"
    return "others may write to it" if status.st_mode & 0o022 else None


def open_to_all(root: Path) -> list[Path]:
    """Find which of a root and the folders above it everybody on the host may put something of theirs in place of."""
    found = []
    place = Path(os.path.realpath(root))
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):
            mode = folder.stat().st_mode
            # The sticky bit keeps them from replacing what is there, and from nothing else.
            if mode & stat.S_IWOTH and (folder == place or not mode & stat.S_ISVTX):
                found.append(folder)
    return found


def group_writes(root: Path) -> bool:
    """Tell whether a root is its group's, too. False where it is not there."""
    with contextlib.suppress(OSError):
        return bool(root.stat().st_mode & stat.S_IWGRP)
    return False


def trusted(root: Path) -> str:
    """Name who may write in a root, and so decides what its servers run. Raises OSError."""
    status = root.stat()
    owner = user_name(status.st_uid)
    return f"{owner}, and the group {_group_name(status.st_gid)}" if status.st_mode & stat.S_IWGRP else owner


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user_name(uid: int) -> str:
    """A user's name, or the number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _remove_in(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):  # the latter is POSIX's for a folder
        # Both open without following links, whoever renames what meanwhile.
        shutil.rmtree(name, dir_fd=folder)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the whole path in an error: below a descriptor the kernel knows the last part alone."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
