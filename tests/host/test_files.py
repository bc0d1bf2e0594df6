"""Whatever lies in the place of a file: it is read at once, bounded, or refused."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rayprep.host.files import open_file, read_bytes, read_end, read_text
from rayprep.host.layout import open_in_run, open_log


def test_a_file_is_read_whole_also_through_a_link(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "file") == read_bytes(tmp_path / "link") == content
    assert read_bytes(tmp_path / "file", len(content)) == content
    assert read_bytes("/proc/self/status"), "whose size is told as 0"


def test_what_is_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="more than 100 bytes") as caught:
        read_bytes(tmp_path / "file", 100)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "file"))


def test_a_huge_file_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than") as caught:
        read_bytes(tmp_path / "file")
    assert caught.value.errno == errno.EFBIG


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def read_log(path: Path) -> str:
    return read_end(open_in_run(path, os.O_RDONLY))


@pytest.mark.parametrize(
    "make",
    [
        make_pipe,
        make_socket,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/stdin"),
        lambda path: path.symlink_to(make_other_pipe(path)),
        Path.mkdir,
    ],
    ids=["pipe", "socket", "zero", "stdin", "link to a pipe", "folder"],
)
@pytest.mark.parametrize("use", [read_bytes, read_text, read_log, open_log], ids=lambda use: str(use.__name__))
def test_what_is_no_file_is_neither_read_nor_waited_for(
    tmp_path: Path, make: Callable[[Path], None], use: Callable[[Path], object]
) -> None:
    make(tmp_path / "name")
    with pytest.raises(OSError, match="name") as caught:
        use(tmp_path / "name")
    assert caught.value.errno in (errno.EINVAL, errno.EISDIR, errno.ELOOP)


def make_other_pipe(path: Path) -> Path:
    os.mkfifo(path.with_name("pipe"))
    return path.with_name("pipe")


def test_what_is_written_has_no_other_name(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious", encoding="utf-8")
    (tmp_path / "name").hardlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="hard link") as caught:
        open_log(tmp_path / "name")
    assert caught.value.errno == errno.EMLINK
    assert read_text(tmp_path / "name") == "precious"


def test_the_end_of_a_log(tmp_path: Path) -> None:
    for words in (b"first\n", b"l\xe4st\n"):
        with open_log(tmp_path / "log") as log:
            log.write(words)
    assert read_log(tmp_path / "log") == "first\nl\ufffdst\n"
    assert read_end(open_in_run(tmp_path / "log", os.O_RDONLY), 3) == "st\n"


@pytest.mark.parametrize("name", ["container_runs", "container_runs/r1", "container_runs/r1/hosts/gpu-1"])
def test_a_stages_log_is_behind_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim" / "r1" / "hosts" / "gpu-1").mkdir(parents=True)
    log = tmp_path / "container_runs" / "r1" / "hosts" / "gpu-1" / "serve.log"
    if name.count("/") < 3:
        log = tmp_path / "container_runs" / "r1" / "serve.log"
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="a link, which is not followed"):
        open_log(log)
    assert not [path for path in (tmp_path / "victim").rglob("*") if path.is_file()]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("file", "pipe", "absent") * 3:
        try:
            os.close(open_file(tmp_path / name, os.O_RDONLY))
        except OSError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
