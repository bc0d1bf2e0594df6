"""Roots that a group shares, with something in the place of a folder or a file of ours: nothing is done through it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ENSURE_TINY, Built, Roots
from tests.host.other_user import NOBODY
from tests.needs import needs_root, needs_tool, needs_torch

OF_THE_STORE = [".rayprep", ".rayprep/inductor", ".rayprep/scratch", ".locks", ".in_progress", "moe_configs/tuning"]
OF_A_RUN = ["logs", "container_runs", "container_runs/r1", "container_runs/r1/history"]
KEPT = "precious"


def victim_of(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    for inner in ("", "scratch", "scratch/entry.1", "inductor", "tiny-dense", "r1", "tuning"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
        (folder / inner / KEPT).write_text("keep", encoding="utf-8")
    return folder


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def refused(done: subprocess.CompletedProcess[str], place: Path, why: str) -> None:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rayprep: error [")]
    assert done.returncode == 3, done.stderr
    assert f"{place} is not used: {why}" in line
    assert "Traceback" not in done.stderr


def commands(roots: Roots, package: str) -> dict[str, Callable[[], subprocess.CompletedProcess[str]]]:
    return {
        "ensure": lambda: roots.run("ensure", *ENSURE_TINY, "--run-id", "r1"),
        "explain": lambda: roots.run("explain", "--model", "tiny-dense"),
        "inspect": lambda: roots.run("inspect"),
        "reset": lambda: roots.run("reset", "--yes"),
        "pack": lambda: roots.run("pack", "tiny-dense", "-o", package),
    }


@pytest.mark.parametrize("name", OF_THE_STORE)
def test_a_link_in_the_store_is_refused_by_name_and_leads_nowhere(roots: Roots, tmp_path: Path, name: str) -> None:
    victim = victim_of(tmp_path)
    place = roots.profiles / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim)
    before = seen(victim)
    for command in commands(roots, str(tmp_path / "package.tar")).values():
        refused(command(), place, "it is a link, which is not followed")
    assert seen(victim) == before


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_link_in_the_telemetry_root_is_refused_by_name(roots: Roots, tmp_path: Path, name: str) -> None:
    victim = victim_of(tmp_path)
    place = roots.telemetry / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim)
    before = seen(victim)
    refused(roots.run("ensure", *ENSURE_TINY, "--run-id", "r1"), place, "it is a link, which is not followed")
    assert seen(victim) == before


@needs_root()
@pytest.mark.parametrize("name", [*OF_THE_STORE, "container_runs/r1"])
def test_a_folder_of_somebody_else_is_refused_by_name(roots: Roots, tmp_path: Path, name: str) -> None:
    root = roots.telemetry if name.startswith("container_runs") else roots.profiles
    place = root / name
    place.mkdir(parents=True)
    os.chown(place, NOBODY, NOBODY)
    done = roots.run("ensure", *ENSURE_TINY, "--run-id", "r1")
    refused(done, place, "it belongs to nobody")
    place.chmod(0o777)
    os.chown(place, 0, 0)
    refused(roots.run("ensure", *ENSURE_TINY, "--run-id", "r1"), place, "everybody may write to it")


def make_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (".rayprep/inductor/tiny-dense-tp1-0123456789abcdef.json", make_pipe),
        (".rayprep/inductor/tiny-dense-tp1-0123456789abcdef.json", make_endless),
        (".rayprep/store-id", make_pipe),
        (".in_progress/tiny-dense/inductor", make_endless),
        pytest.param(".locks/tiny-dense.lock", make_endless, marks=pytest.mark.slow),
        pytest.param(".locks/.store.lock", make_pipe, marks=pytest.mark.slow),
    ],
)
def test_what_is_no_file_in_the_store_holds_nobody_up(
    roots: Roots, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(roots.profiles / name)
    for what, command in commands(roots, str(tmp_path / "package.tar")).items():
        if what == "ensure" and ".locks" not in name:
            continue  # it would build, which is looked at elsewhere
        began = time.monotonic()
        done = command()
        assert time.monotonic() - began < 60
        assert "Traceback" not in done.stderr
        assert "MemoryError" not in done.stderr


@pytest.mark.parametrize("make", [make_pipe, make_endless])
@pytest.mark.parametrize(
    "name", ["logs/r1.log", "container_runs/r1/prep_result.json", "container_runs/r1/.lock", "container_run_meta.env"]
)
def test_what_is_no_file_in_the_telemetry_root_holds_no_run_up(
    roots: Roots, name: str, make: Callable[[Path], None]
) -> None:
    make(roots.telemetry / name)
    done = roots.run("ensure", *ENSURE_TINY, "--skip", "inductor", "--run-id", "r1")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3), done.stderr


@pytest.mark.parametrize("make", [make_pipe, make_endless])
def test_a_metrics_file_that_is_none_costs_a_warning(roots: Roots, make: Callable[[Path], None]) -> None:
    make(roots.telemetry / "prometheus" / "rayprep.prom")
    done = roots.run("ensure", *ENSURE_TINY, "--skip", "inductor", "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    assert "rayprep.prom cannot be written: it is" in done.stdout


@pytest.mark.parametrize("make", [make_pipe, make_endless])
@pytest.mark.parametrize(
    "arguments",
    [
        ("ensure", "--spec-file", "{}"),
        ("explain", "--model", "{}"),
        ("explain", "--model", "{folder}"),
        ("snapshot", "--manifest", "{}"),
        ("unpack", "{}"),
        ("unpack", "{}.zst"),
    ],
)
def test_what_the_user_names_is_a_file_or_refused(
    roots: Roots, tmp_path: Path, arguments: tuple[str, ...], make: Callable[[Path], None]
) -> None:
    place = tmp_path / "model" / "config.json"
    make(place)
    place.with_name("config.json.zst").symlink_to(place)
    words = [word.replace("{folder}", str(place.parent)).replace("{}", str(place)) for word in arguments]
    done = roots.run(*words)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("rayprep: error [BadRequest]: ")


def test_a_manifest_elsewhere_is_not_written_to(roots: Roots, tmp_path: Path) -> None:
    """A pointer is a file that a member of the group can write."""
    victim = tmp_path / "victim" / "container_run_meta.json"
    victim.parent.mkdir()
    roots.run("manifest", "--run-id", "c1", "--telemetry-root", str(roots.telemetry))
    manifest = roots.telemetry / "container_runs" / "c1" / "container_run_meta.json"
    text = manifest.read_text(encoding="utf-8")
    for path in (victim, roots.telemetry / "victim.json"):
        path.write_text(text.replace(str(manifest), str(path)), encoding="utf-8")
        before = path.read_bytes()
        (roots.telemetry / "container_run_meta.env").write_text(f"CONTAINER_RUN_META_JSON={path}\n", encoding="utf-8")
        done = roots.run("ensure", *ENSURE_TINY, "--skip", "inductor", "--run-id", "r1")
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == before
        assert [found.name for found in path.parent.iterdir() if found.name.endswith(".lock")] == []


@needs_torch()
def test_a_root_that_everybody_may_write_to_is_named(roots: Roots, built: Built) -> None:
    built.copy_to(roots)
    roots.profiles.chmod(0o777)
    done = roots.run("ensure", *ENSURE_TINY, "--run-id", "r1")
    assert f"everybody on this host may write to {roots.profiles}" in done.stdout
    assert any("everybody" in warning for warning in roots.result("r1")["warnings"])


@needs_torch()
@needs_root()
@needs_tool("setpriv")
def test_who_may_only_look_finds_that_nothing_is_to_be_done(roots: Roots, built: Built) -> None:
    """Root without its right to go everywhere, on caches of another user's."""
    built.copy_to(roots)
    for path in (roots.profiles, *roots.profiles.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    before = seen(roots.profiles)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        barred = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
        command = [*barred, *roots.command("ensure", *arguments)]
        return subprocess.run(command, env=roots.env, capture_output=True, text=True, timeout=60, check=False)

    done = run(*ENSURE_TINY, "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    assert roots.result("r1")["stages"]["inductor"]["status"] == "noop"
    other = run(*ENSURE_TINY, "--tp", "2", "--run-id", "r2")
    assert other.returncode == 3
    assert f"profiles root {roots.profiles} cannot be used: not writable" in other.stderr
    assert seen(roots.profiles) == before


@needs_torch()
@needs_root()
@pytest.mark.parametrize(("umask", "mode"), [("022", 0o664), ("027", 0o660), ("077", 0o600)])
def test_a_users_umask_that_keeps_the_group_out_stands(
    roots: Roots, built: Built, umask: str, mode: int, tmp_path: Path
) -> None:
    built.copy_to(roots)
    shutil.rmtree(roots.telemetry, ignore_errors=True)
    command = roots.command("ensure", *ENSURE_TINY, "--run-id", "r1")
    subprocess.run(["sh", "-c", f'umask {umask}; exec "$@"', "sh", *command], check=True, env=roots.env)
    for path in (roots.telemetry / "container_runs" / "r1" / "prep_result.json", roots.log("r1")):
        assert path.stat().st_mode & 0o777 == mode
    folder = roots.telemetry / "container_runs" / "r1"
    assert folder.stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2
