"""Following a log while it is written."""

from pathlib import Path

import pytest

from rayprep.server.log_follower import LogFollower


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


def add(log: Path, text: bytes) -> None:
    with log.open("ab") as file:
        file.write(text)


def test_lines_and_pieces_are_heard_when_they_are_whole(log: Path) -> None:
    heard: list[str] = []
    follower = LogFollower(log, heard.append)
    assert not follower.follow(), "nobody has written yet"
    add(log, b"one\ntw")
    follower.follow()
    assert heard == ["one"]
    add(log, "o\r\n 0%|\r50%|█\r".encode()[:-3])
    follower.follow()
    add(log, "█\r".encode()[-3:] + b"three")
    follower.follow()
    assert heard == ["one", "two", " 0%|", "50%|█"]
    follower.finish()
    assert [line for line in heard if line] == ["one", "two", " 0%|", "50%|█", "three"]


def test_what_an_earlier_attempt_said_is_not_heard(log: Path) -> None:
    add(log, b"earlier\n")
    heard: list[str] = []
    follower = LogFollower(log, heard.append)
    add(log, b"now\n\xff\n")
    follower.follow()
    assert heard == ["now", "\ufffd"]


def test_a_flood_is_heard_in_parts_and_its_end_in_any_case(log: Path) -> None:
    heard: list[str] = []
    follower = LogFollower(log, heard.append)
    add(log, b"first\n" + b"x" * 5_000_000 + b"\nlast")
    assert follower.follow()
    assert heard[0] == "first"
    assert max(map(len, heard)) <= 1 << 20
    follower.finish()
    assert heard[-1] == "last"
    assert sum(map(len, heard)) < 2_300_000, "the middle is left out"


def test_a_secret_in_the_log_is_overwritten_where_it_stands(log: Path) -> None:
    """Also one that was half written when it was read, and beside bytes that are no text."""
    heard: list[str] = []
    follower = LogFollower(log, heard.append)
    add(log, b"\xff args(api_key='sk-hunter2', x=1)\nredis://:hun")
    follower.follow()
    assert b"hunter2" not in log.read_bytes()
    add(log, b"ter3@h/0 \xc3\xa9\nlast")
    follower.finish()
    assert log.read_bytes() == (b"\xff args(api_key=************, x=1)\nredis://********@h/0 \xc3\xa9\nlast")
    assert heard[-1] == "last"
