"""Files that others read are whole at every moment, whoever is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from rayprep.host.atomic import current_umask, write_text
from tests.host.programs import ended
from tests.processes import wait_for

WRITER = """
import itertools, json, pathlib, sys
from rayprep.host.atomic import write_text
path, who = pathlib.Path(sys.argv[1]), sys.argv[2]
for number in itertools.count():
    filler = [number] * (1 + number % 7 * 5000)
    write_text(path, json.dumps({"who": who, "number": number, "filler": filler, "end": True}))
"""


def start_writer(path: Path, who: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), who])


def whole(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    assert document["end"] is True
    return document


def says(path: Path, name: str, value: object) -> bool:
    return whole(path)[name] == value


def says_otherwise(path: Path, name: str, value: object) -> bool:
    return not says(path, name, value)


def leftovers(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if each.name.endswith(".tmp")]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, json.dumps({"who": "nobody", "number": 0, "end": True}))
    for generation in range(8):
        with ended(start_writer(path, str(generation))) as writer:
            wait_for(partial(says, path, "who", str(generation)), "the writer has written")
            first = whole(path)["number"]
            wait_for(partial(says_otherwise, path, "number", first), "the writer goes on")
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        whole(path)


def test_what_a_killed_writer_left_goes_when_it_is_old_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    names = [".result.json.dead.tmp", ".result.json.busy.tmp", ".result.json.tmp.kept", ".other.json.dead.tmp"]
    for name in names:
        (tmp_path / name).touch()
        if "busy" not in name:
            os.utime(tmp_path / name, (1.0, 1.0))
    write_text(path, "{}")
    assert {each.name for each in tmp_path.iterdir()} == {"result.json", *names[1:]}


def test_writers_side_by_side_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    seen = set()

    def all_seen() -> bool:
        if path.exists():
            seen.add(whole(path)["who"])
        return len(seen) == 3

    with contextlib.ExitStack() as writers:
        for number in range(3):
            writers.enter_context(ended(start_writer(path, str(number))))
        wait_for(all_seen, "each writer's file was there once")
    whole(path)


@pytest.mark.parametrize(("umask", "mode"), [("002", 0o664), ("022", 0o644), ("027", 0o640), ("077", 0o600)])
def test_the_mode_honours_the_umask(tmp_path: Path, umask: str, mode: int) -> None:
    path = tmp_path / "result.json"
    program = (
        "import os, pathlib, sys; os.umask(int(sys.argv[2], 8))\n"
        "from rayprep.host.atomic import current_umask, write_text\n"
        "write_text(pathlib.Path(sys.argv[1]), 'x'); print(current_umask(), os.umask(0))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), umask], check=True, capture_output=True, text=True)
    assert path.stat().st_mode & 0o777 == mode
    assert done.stdout.split() == [str(int(umask, 8))] * 2, "asking for the umask must not change it"


def test_asking_for_the_umask_leaves_it() -> None:
    before = current_umask()
    assert current_umask() == before == os.umask(before)


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    program = (
        "import pathlib, resource, sys\n"
        "from rayprep.host.atomic import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_text(pathlib.Path(sys.argv[1]), 'x' * 100000)\n"
        "except OSError as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == "OSError\n"
    assert path.read_text(encoding="utf-8") == "old"
    assert leftovers(tmp_path) == []


def test_a_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udcff")
    assert path.read_text(encoding="utf-8") == "old"
    assert leftovers(tmp_path) == []


def test_a_folder_in_the_way_stays_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(OSError, match=r"result\.json"):
        write_text(tmp_path / "result.json", "new")
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "result.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_and_what_it_led_to_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("theirs", encoding="utf-8")
    (tmp_path / "result.json").symlink_to(target)
    write_text(tmp_path / "result.json", "ours")
    assert target.read_text(encoding="utf-8") == "theirs"
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == "ours"
    assert not (tmp_path / "result.json").is_symlink()


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "ü\r\n\n")
    assert (tmp_path / "x").read_bytes() == "ü\r\n\n".encode()
