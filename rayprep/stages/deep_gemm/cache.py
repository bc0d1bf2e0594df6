"""DeepGEMM's cache as it lies on the disk, in both of its layouts.

Up to 0.1:  DIR/cache/kernel.NAME.HASH/{kernel.cu,kernel.cubin}, made below DIR/tmp and renamed as a folder.
From 0.2:   DIR/cache/TAG.DIGEST/{kernel.cu,kernel.cubin,meta.json,.committed}, made in the same way. meta.json says how
            it was compiled and is never read; .committed is empty and gets a new time at each hit.
The library stops at a folder of the first kind that lacks a file, so nothing half-written may stay.
Source: csrc/jit/compiler.hpp of sgl-deep-gemm 0.1; include/deep_jit/{cache/disk,backend/cuda/backend}.hpp of 0.2.
"""

import json
import os
import shutil
import stat
import uuid
from pathlib import Path
from typing import NamedTuple

from rayprep.base.records import Record
from rayprep.host.files import read_bytes

SOURCE, CUBIN = "kernel.cu", "kernel.cubin"
META, COMMITTED = "meta.json", ".committed"
"""What an entry of the second layout has besides."""
_OURS = "rayprep."


class Recorded(Record):
    """What the stand-in compiler leaves in place of a cubin: the arguments that it was called with."""

    recorded: tuple[str, ...]


def entries(cache: Path) -> list[Path]:
    """The folders below DIR/cache, whole or not, sorted by name."""
    try:
        return sorted(path for path in (cache / "cache").iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []


def whole_entry(folder: Path) -> bool:
    """Whether DeepGEMM will find one kernel there, ready to be loaded."""
    first_layout = folder.name.startswith("kernel.") and not os.path.lexists(folder / META)
    filled = all(_size(folder / name) > 0 for name in (SOURCE, CUBIN))
    return filled and (first_layout or (_size(folder / META) > 0 and _size(folder / COMMITTED) >= 0))


def files_of(folder: Path) -> list[str]:
    """An entry's plain files, by name."""
    return sorted(path.name for path in folder.iterdir() if _size(path) >= 0)


def recorded_arguments(folder: Path) -> tuple[str, ...] | None:
    """The arguments that the stand-in compiler noted in this entry; None where there is a real cubin.

    Raises:
        OSError: the entry has no readable cubin.
    """
    content = read_bytes(folder / CUBIN)
    if not content.startswith(b"{"):  # a cubin is an ELF file
        return None
    return Recorded.model_validate(json.loads(content)).recorded


def new_folder(cache: Path) -> Path:
    """An empty folder below DIR/tmp, on the file system that its entry will lie on."""
    folder = cache / "tmp" / f"{_OURS}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)  # not mkdtemp, whose folders nobody else may read
    return folder


def clear_left_over(cache: Path) -> None:
    """Removes what a killed build of ours left below DIR/tmp. For the holder of the store's lock."""
    for folder in (cache / "tmp").glob(f"{_OURS}*"):
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Moves a finished entry to its place in one step, or drops it where a whole one is already.

    Raises:
        OSError: the file system refused, or half an entry is in the way.
    """
    for name in (*files_of(folder), "."):
        _sync(folder / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if not whole_entry(target):
            raise
        shutil.rmtree(folder)
    _sync(target.parent)


class Compilers(NamedTuple):
    """The stand-in that an entry was listed with, and the one that makes its cubin."""

    stand_in: str
    real: str


def copy_without_cubin(entry: Path, folder: Path, compilers: Compilers) -> None:
    """Copies an entry's files, and has its meta.json name the compiler that its cubin is of.

    Raises:
        OSError: the file system refused.
    """
    for name in files_of(entry):
        if name == META:
            text = (entry / META).read_text(encoding="utf-8", errors="surrogateescape")
            (folder / META).write_text(text.replace(*compilers), encoding="utf-8", errors="surrogateescape")
        elif name != CUBIN:
            shutil.copyfile(entry / name, folder / name)


def adopt(entry: Path, cache: Path, compilers: Compilers) -> None:
    """Puts a copy of a whole entry of another cache into this one.

    Raises:
        OSError: the file system refused.
    """
    folder = new_folder(cache)
    try:
        copy_without_cubin(entry, folder, compilers)
        shutil.copyfile(entry / CUBIN, folder / CUBIN)
        publish(folder, cache / "cache" / entry.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(path: Path) -> int:
    """A plain file's size in bytes, -1 for anything else."""
    try:
        found = path.lstat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
