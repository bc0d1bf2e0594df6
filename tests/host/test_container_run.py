"""The pointer and the manifest on disk: found, written, and changed by several at once."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.base.records import Located, to_json
from rayprep.client import find_manifest
from rayprep.host.container_run import read_container_run
from rayprep.host.manifest_file import update_manifest, write_manifest
from rayprep.model.container_manifest import LONGEST_POINTER, POINTER, Manifest, merged, parse_pointer, pointer_text
from tests.model.samples import MOMENT
from tests.model.test_container_manifest import manifest
from tests.needs import needs_namespaces


def inside(telemetry: Path, **changes: object) -> Manifest:
    """Of a container that sees its telemetry root there."""
    path = telemetry / "container_runs" / "container-run-1" / "container_run_meta.json"
    places = {
        "manifest": Located(container_path=str(path), host_path="/host/m.json"),
        "telemetry_root": Located(container_path=str(telemetry), host_path="/host/telemetry"),
    }
    return manifest(**places, **changes)


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    written = inside(tmp_path)
    write_manifest(written)
    assert read_container_run(tmp_path) == written


def test_on_the_host_the_same_pointer_is_not_ours(tmp_path: Path) -> None:
    write_manifest(inside(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "container_run_meta.env").write_bytes((tmp_path / "container_run_meta.env").read_bytes())
    assert read_container_run(tmp_path / "other") is None


def test_a_container_that_has_stopped_is_nobodys(tmp_path: Path) -> None:
    write_manifest(inside(tmp_path, stopped_at=MOMENT))
    assert read_container_run(tmp_path) is None


@pytest.mark.parametrize("text", [b"", b"\xff", b"A=1\n", b"CONTAINER_RUN_META_JSON=/not/here.json\n"])
def test_a_damaged_pointer_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "container_run_meta.env").write_bytes(text)
    assert read_container_run(tmp_path) is None


def test_a_pointer_of_megabytes_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "container_run_meta.env").write_bytes(b"CONTAINER_RUN_META_JSON=" + b"x" * (1 << 20))
    started = time.monotonic()
    assert read_container_run(tmp_path) is None
    with pytest.raises(HostUnfit, match="cannot be read"):
        find_manifest({"HOST_TELEMETRY_ROOT": str(tmp_path)})
    assert time.monotonic() - started < 5


def test_the_longest_paths_that_there_are_fit_into_a_pointer(tmp_path: Path) -> None:
    longest = "/" + "'" * 4094
    text = pointer_text(Located(container_path=longest, host_path=longest))
    assert len(text.encode()) <= LONGEST_POINTER
    assert parse_pointer(text)[POINTER] == longest


def test_changes_made_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"theirs": 1}', encoding="utf-8")

    def change(name: str) -> None:
        update_manifest(path, lambda text: merged(text, "m.json", {("optimizations", name): name}))

    threads = [threading.Thread(target=change, args=(f"stage-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["theirs"] == 1
    assert len(found["optimizations"]) == 8


@needs_namespaces()
def test_a_pointer_that_is_a_mount_point_is_written_in_place(tmp_path: Path) -> None:
    telemetry, on_host = tmp_path / "telemetry", tmp_path / "on_host.env"
    telemetry.mkdir()
    (telemetry / "container_run_meta.env").touch()
    on_host.write_text("CONTAINER_RUN_META_JSON=/of/a/much/longer/path/of/an/old/run.json\n" * 9, encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; from rayprep.host.manifest_file import write_manifest;"
        "from rayprep.model.container_manifest import Manifest;"
        "write_manifest(Manifest.model_validate_json(sys.stdin.read()))"
    )
    mounted = 'mount --bind "$1" "$2"; exec "$3" -c "$4"'
    places = [str(on_host), str(telemetry / "container_run_meta.env"), sys.executable, program]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-ec", mounted, "sh", *places],
        input=to_json(inside(telemetry)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert parse_pointer(on_host.read_text(encoding="utf-8"))[POINTER].startswith(str(telemetry))
    assert len(on_host.read_text(encoding="utf-8").splitlines()) == 2
    assert [path.name for path in telemetry.iterdir()].count("container_run_meta.env") == 1
    assert not list(telemetry.glob(".*.tmp"))
