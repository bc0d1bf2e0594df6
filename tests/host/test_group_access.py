"""`chmod -R g+rwX`, of our own files only."""

import os
from pathlib import Path

import pytest

from rayprep import umask_for
from rayprep.host.group_access import share_with_group
from tests.host.other_user import NOBODY
from tests.needs import needs_root


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def make(path: Path, mode: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    folder.mkdir()
    folder.chmod(0o775)
    return folder


def test_the_group_may_do_what_the_owner_may(root: Path) -> None:
    plain, program = make(root / "triton" / "a.json", 0o600), make(root / "triton" / "b.so", 0o700)
    (root / "triton").chmod(0o2700)
    assert share_with_group(root) == 3
    assert (mode(plain), mode(program), mode(root / "triton")) == (0o660, 0o770, 0o2770)
    assert share_with_group(root) == 0, "and then there is nothing left to change"


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside" / "key", 0o600)
    outside.parent.chmod(0o700)
    (root / "file").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    os.mkfifo(root / "pipe", 0o600)
    assert share_with_group(root) == 0
    assert (mode(outside), mode(outside.parent)) == (0o600, 0o700)


@needs_root()
def test_what_another_user_owns_is_left_alone(root: Path) -> None:
    theirs, ours = make(root / "a" / "theirs", 0o600), make(root / "a" / "ours", 0o600)
    os.chown(theirs, NOBODY, NOBODY)
    os.chown(root / "a", NOBODY, NOBODY)
    assert share_with_group(root) == 1
    assert (mode(theirs), mode(ours)) == (0o600, 0o660)


def test_a_private_file_that_somebody_has_linked_here_stays_private(root: Path, tmp_path: Path) -> None:
    secret = make(tmp_path / "elsewhere" / "secret", 0o600)
    (root / "name").hardlink_to(secret)
    share_with_group(root)
    assert mode(secret) == 0o600


@pytest.mark.parametrize(
    ("inherited", "umask"),
    [(0o022, 0o002), (0o002, 0o002), (0o000, 0o002), (0o027, 0o007), (0o077, 0o077), (0o070, 0o072)],
)
def test_a_umask_that_keeps_somebody_out_altogether_stands(inherited: int, umask: int) -> None:
    assert umask_for(inherited) == umask
