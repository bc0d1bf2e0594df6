"""Where everything lies, and which root wins."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.host.layout import Layout, choose_roots, clear_scratch, make_scratch, os_error_type, prepare_root
from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from tests.foreign import NASTY
from tests.host.other_user import NOBODY, as_user
from tests.needs import needs_namespaces, needs_root

LAYOUT = Layout(Path("/profiles"), Path("/telemetry"))
INDUCTOR = StageName.INDUCTOR


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (LAYOUT.cache(CacheName.DEEP_GEMM), "/profiles/deep_gemm"),
        (LAYOUT.marker("slug", INDUCTOR), "/profiles/.in_progress/slug/inductor"),
        (LAYOUT.slug_lock("slug"), "/profiles/.locks/slug.lock"),
        (LAYOUT.completion(INDUCTOR, "key"), "/profiles/.rayprep/inductor/key.json"),
        (LAYOUT.result("run"), "/telemetry/container_runs/run/prep_result.json"),
        (LAYOUT.session_log("run"), "/telemetry/logs/run.log"),
        (LAYOUT.stage_log("run", INDUCTOR), "/telemetry/container_runs/run/inductor.log"),
    ],
)
def test_every_path_is_the_contracts(path: Path, expected: str) -> None:
    assert str(path) == expected


def test_no_slug_can_have_the_stores_lock() -> None:
    from rayprep.model.slug import model_slug

    assert LAYOUT.store_lock.name.startswith("."), "and no slug does"
    assert model_slug(".store") == "store"


def test_the_environment_leads_every_library_below_the_root() -> None:
    env = LAYOUT.cache_env()
    assert all(value.startswith("/profiles/") for value in env.values())
    assert env["SGLANG_CACHE_DIR"] == "/profiles/others/sglang"
    assert env["FLASHINFER_WORKSPACE_BASE"] == env["FLASHINFER_WORKSPACE_DIR"] == "/profiles/flashinfer"
    assert LAYOUT.contract_env() == {
        "TRITON_CACHE_DIR": "/profiles/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/profiles/torchinductor",
        "FLASHINFER_WORKSPACE_DIR": "/profiles/flashinfer",
        "SGLANG_DG_CACHE_DIR": "/profiles/deep_gemm",
        "SGLANG_MOE_CONFIG_DIR": "/profiles/moe_configs",
    }


def roots(environ: dict[str, str], profiles: str | None = None, telemetry: str | None = None) -> tuple[str, str]:
    chosen = choose_roots(environ, profiles, telemetry)
    return str(chosen.profiles), str(chosen.telemetry)


def test_the_flag_wins_over_the_variable_over_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    host = {"HOST_PROFILES_ROOT": "/host/p", "HOST_TELEMETRY_ROOT": "/host/t"}
    xdg = {"XDG_CACHE_HOME": "/xdg/cache", "XDG_DATA_HOME": "/xdg/data"}
    assert roots(host | xdg, "/flag/p", "/flag/t") == ("/flag/p", "/flag/t")
    assert roots(host | xdg) == ("/host/p", "/host/t")
    assert roots(host | xdg, profiles="/flag/p") == ("/flag/p", "/host/t")
    assert roots(xdg) == ("/xdg/cache/sglang/profiles", "/xdg/data/sglang-dev/telemetry")
    home = (f"{tmp_path}/.cache/sglang/profiles", f"{tmp_path}/.local/share/sglang-dev/telemetry")
    assert roots({}) == home
    assert roots(dict.fromkeys([*host, *xdg], "")) == home, "a variable that is empty is none"


CONTAINER = """
set -e
new=$1; shift
mount -t tmpfs none "$new"
for path in /*; do
    if [ -L "$path" ]; then cp -P "$path" "$new"
    elif [ -d "$path" ]; then mkdir "$new$path"; mount --rbind "$path" "$new$path"; fi
done
for path in "$@"; do mkdir -p "$new$path"; done
for path in $MOUNTED; do mount -t tmpfs none "$new$path"; done
exec chroot "$new" "$PYTHON" -c '
from rayprep.host.layout import choose_roots
import sys
print(choose_roots({"XDG_CACHE_HOME": "/xdg", "XDG_DATA_HOME": "/xdg"}).profiles)
print(choose_roots({"XDG_CACHE_HOME": "/xdg", "XDG_DATA_HOME": "/xdg"}).telemetry)
print(choose_roots({"HOST_PROFILES_ROOT": "/host", "HOST_TELEMETRY_ROOT": "/host"}).profiles)
'
"""


@pytest.mark.namespaces
@needs_namespaces()
@pytest.mark.parametrize(
    ("mounted", "expected"),
    [
        ("/profiles /telemetry", ["/profiles", "/telemetry", "/host"]),
        ("/profiles /telemetry/logs", ["/profiles", "/telemetry", "/host"]),
        ("/telemetry/container_runs", ["/xdg/sglang/profiles", "/telemetry", "/host"]),
        ("", ["/xdg/sglang/profiles", "/xdg/sglang-dev/telemetry", "/host"]),
    ],
)
def test_the_containers_mounts_win_over_the_default_and_plain_folders_do_not(
    tmp_path: Path, mounted: str, expected: list[str]
) -> None:
    """In a mount namespace with a root of its own, where /profiles and /telemetry are really mounted or only there."""
    places = ["/profiles", "/telemetry/logs", "/telemetry/container_runs"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", CONTAINER, "sh", str(tmp_path), *places],
        env={**os.environ, "MOUNTED": mounted, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


def test_roots_are_absolute_but_links_in_them_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert roots({}, "p", "~/t") == (f"{tmp_path}/p", "/home/me/t")
    assert roots({}, "a/../link/./p/", "t") == (f"{tmp_path}/link/p", f"{tmp_path}/t")


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("place", ["--profiles-root", "--telemetry-root", "HOST_PROFILES_ROOT", "HOST_TELEMETRY_ROOT"])
def test_a_root_that_no_json_file_could_name_or_no_line_hold_is_refused(place: str, name: str) -> None:
    given = {place: f"/caches/{name}"}
    with pytest.raises(BadRequest, match="not UTF-8, or does not print") as caught:
        choose_roots({"HOME": "/h", **given}, given.get("--profiles-root"), given.get("--telemetry-root"))
    caught.value.line.encode()


def test_a_root_in_a_folder_that_does_not_print_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / NASTY["title"]
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(BadRequest, match="does not print"):
        roots({}, "p", "/t")


@needs_root()
def test_a_user_without_a_home_needs_one_only_for_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    unknown_uid = 54321
    given = as_user(unknown_uid, lambda: roots({}, "/p", "/t"))
    assert given == ("/p", "/t")
    with pytest.raises(HostUnfit, match="no home folder") as caught:
        as_user(unknown_uid, lambda: roots({}))
    assert "HOME" in caught.value.hint


def test_a_root_is_made_with_its_parents_and_may_be_there_already(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    prepare_root(root, "profiles")
    prepare_root(root, "profiles")
    assert root.is_dir()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/below", "dangling"])
def test_a_root_that_cannot_be_made_is_one_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(HostUnfit, match=f"profiles root {tmp_path / where}") as caught:
        prepare_root(tmp_path / where, "profiles")
    assert "--profiles-root" in caught.value.hint
    assert not (tmp_path / "nowhere").exists()


@needs_root()
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o733])
def test_a_root_that_may_not_be_written_or_listed_is_one_line(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "root"
        root.mkdir()
        root.chmod(mode)
        with pytest.raises(HostUnfit, match="telemetry root") as caught:
            as_user(NOBODY, lambda: prepare_root(root, "telemetry"))
        assert caught.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED


@pytest.mark.namespaces
@needs_namespaces()
def test_a_read_only_root_is_one_line(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from rayprep.host.layout import prepare_root\n"
        "from rayprep.base.errors import HostUnfit\n"
        "try: prepare_root(pathlib.Path(sys.argv[1]), 'profiles')\n"
        "except HostUnfit as error: print(error.line)"
    )
    script = 'mount -t tmpfs -o ro none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"profiles root {tmp_path} cannot be used: ")
    assert len(done.stdout.splitlines()) == 1


def test_what_the_os_refuses_has_a_type() -> None:
    import errno

    full = {errno.ENOSPC, errno.EDQUOT}
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE):
        expected = ErrorType.INSUFFICIENT_DISK if number in full else ErrorType.PERMISSIONS_UNEXPECTED
        assert os_error_type(OSError(number, "x")) is expected


def test_outside_a_container_a_path_has_one_name() -> None:
    located = LAYOUT.located(Path("/profiles/triton"))
    assert located.container_path == located.host_path == "/profiles/triton"


@needs_root()
@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o2775), (0, 0o777), (0, 0o770)])
def test_a_scratch_folder_that_others_can_enter_is_not_used(tmp_path: Path, owner: int, mode: int) -> None:
    layout = Layout(tmp_path / "profiles", tmp_path)
    make_scratch(layout)
    os.chown(layout.profiles, -1, NOBODY)
    layout.profiles.chmod(0o2775)
    make_scratch(layout)
    assert layout.scratch.stat().st_mode & 0o777 == 0o700
    os.chown(layout.scratch, owner, NOBODY)
    layout.scratch.chmod(mode)
    with pytest.raises(PermissionError):
        make_scratch(layout)
    clear_scratch(layout)
    make_scratch(layout)
