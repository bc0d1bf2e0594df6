"""Bad input of every kind: one line, the right exit code, the right error type, nothing lost."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ENSURE_TINY, REPOSITORY, Built, Roots, write_model
from tests.needs import needs_fuse, needs_namespaces, needs_root, needs_torch
from tests.processes import import_s, wait_for
from tests.sealing import resealed


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rayprep: error [")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ('{"model_path": "tiny-de', "not JSON"),
        ("model_path: tiny-dense", "not JSON"),
        ('["tiny-dense"]', 'must be a JSON object, not list (write it as {"key": value, ...})'),
        ('{"campaign": []}', 'have one at least (such as {"campaign"'),
        ('{"model_path": "tiny-dense", "batch_sizes": 1}', "batch_sizes: Input should be a list, got 1"),
        ('{"model_path": "tiny-dense", "tp": "eight"}', "tp"),
        ('{"model_path": "tiny-dense", "tp": 0}', "tp"),
        ('{"model_path": 7}', "model"),
        ('{"tp": 1}', "no model"),
        ('{"model_path": "tiny-dense", "ops": "ensure"}', "ops"),
        ('{"model_path": "tiny-dense", "ops": {"inductor": "sometimes"}}', "sometimes"),
        ('{"model_path": "tiny-dense", "ops": {"moe": {"policy": {"batch_sizes": ["x"]}}}}', "batch_sizes"),
        ('{"model_path": "tiny-dense", "ep_size": 4}', "expert parallel"),
        ('{"model_path": "tiny-dense", "mem_fraction": 7}', "mem_fraction"),
        ('{"model_path": "tiny-dense", "server_args": ["--x=\\u0000"]}', "server_args.0: must not hold"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_spec_files_that_say_nothing_usable(roots: Roots, tmp_path: Path, text: str, word: str) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(text, encoding="utf-8")
    assert_one_line(roots.run("ensure", "--spec-file", str(spec)), 2, word)
    assert not roots.telemetry.exists()


def test_a_spec_file_that_cannot_be_read(roots: Roots, tmp_path: Path) -> None:
    assert_one_line(roots.run("ensure", "--spec-file", str(tmp_path / "absent.json")), 2, "absent.json", "No such file")
    assert_one_line(roots.run("ensure", "--spec-file", str(tmp_path)), 2, "directory (give another --spec-file)")
    (tmp_path / "latin").write_bytes(b'{"model_path": "\xe9"}')
    assert_one_line(roots.run("ensure", "--spec-file", str(tmp_path / "latin")), 2, "utf-8")


def test_a_model_folder_without_a_config(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "empty-model").mkdir()
    assert_one_line(roots.run("ensure", "--model", str(tmp_path / "empty-model")), 2, "empty-model has no config.json")


def test_a_model_that_is_nowhere(roots: Roots) -> None:
    assert_one_line(roots.run("ensure", "--model", "Nobody/Nothing-7B"), 2, "Nobody/Nothing-7B", "hf download")
    done = roots.run("ensure", "--model", str(roots.base / "gone"))
    assert_one_line(done, 2, f"model folder {roots.base}/gone does not exist (give a folder that holds a config.json)")
    assert_one_line(roots.run("ensure", "--model", "x" * 5000), 2)
    assert_one_line(roots.run("ensure", "--model", "/x" * 5000), 2)
    assert_one_line(roots.run("ensure", "--model", ""), 2, "model")


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": "many"}, {"hidden_size": -1}])
def test_a_config_with_impossible_widths(roots: Roots, tmp_path: Path, change: dict[str, object]) -> None:
    model = write_model(tmp_path / "odd", **change)
    assert_one_line(roots.run("ensure", "--model", str(model)), 2, next(iter(change)))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--tp", "3"), ("tp 3", "4 attention heads")),
        (("--tp", "0"), ("tp",)),
        (("--rebuild", "inductr"), ("inductr", "did you mean inductor")),
        (("--skip", "everything"), ("everything", "stages:")),
        (("--skip", "moe", "--rebuild", "triton"), ("--rebuild moe_tune and --skip moe_tune exclude each other",)),
        (("--inductor", "--skip", "inductor"), ("the flag for inductor and --skip inductor exclude each other",)),
        (("--inductor", "--rebuild", "serve"), ("--rebuild serve does nothing beside the flag for inductor",)),
        (("--block-size", "128"), ("128", "weight_block_size")),
        (("--batch-size", "0"), ("batch_sizes",)),
        (("--server-arg=--dp-size=2",), ("data parallel", "dp_size=2")),
        (("--server-arg=--enable-dp-attention",), ("data parallel",)),
        (("--server-arg=--pp-size 2",), ("pipeline parallel",)),
        (("--server-arg=--nnodes 2",), ("several nodes",)),
        (("--server-arg=--tp-size 4",), ("contradicts --tp 1",)),
        (("--server-arg=--port 1",), ("rayprep's own",)),
        (("--moe-strategy", "guess"), ("moe_strategy",)),
        (("--device", "tpu"), ("device",)),
        (("--run-id", "../escape"), ("../escape",)),
        (("--warmup-port", "80"), ("warmup_port",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_flags_that_ask_for_the_impossible(roots: Roots, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line(roots.run("ensure", "--model", "tiny-dense", *args), 2, *words)


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (("ensure", "--model", "tiny-dense", "--nodes", "gpu-01"), "--nodes"),
        (("ensure", "--model", "tiny-dense", "--address", "h:1", "--canary", "1"), "--canary"),
        (("ensure", "--model", "tiny-dense", "--node-retries", "0", "--dry-run"), "--node-retries"),
        (("ensure", "--model", "tiny-dense", "--max-failures", "0"), "--max-failures"),
        (("ensure", "--model", "tiny-dense", "--require-uniform"), "--require-uniform"),
        (("verify", "--model", "tiny-dense", "--exclude", "gpu-01"), "--exclude"),
        (("inspect", "--address", "10.0.0.1:6379"), "--address"),
        (("doctor", "--labels", "pool=gh200"), "--labels"),
        (("reset", "--yes", "--nodes", "gpu-01"), "--nodes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_flag_about_a_fleet_needs_one(roots: Roots, args: tuple[str, ...], flag: str) -> None:
    """Who forgets --cluster must not work on the login node."""
    assert_one_line(roots.run(*args), 2, f"{flag} needs --cluster")
    assert not roots.telemetry.exists()


def test_a_gpu_is_asked_for_and_there_is_none(roots: Roots) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this host has a GPU")
    assert_one_line(roots.run("ensure", "--model", "tiny-dense", "--device", "cuda"), 3, "no GPU")


def test_a_bad_request_with_json_is_an_event_too(roots: Roots) -> None:
    done = roots.run("ensure", "--model", "tiny-dense", "--tp", "3", "--json")
    assert done.returncode == 2
    event = json.loads(done.stdout.removeprefix("OPTIMIZE_JSON "))
    assert (event["name"], event["phase"], event["status"]) == ("ensure", "end", "error")


def test_an_address_where_nothing_answers(roots: Roots) -> None:
    limit_s, started = 10 + 2 * import_s(), time.monotonic()
    done = roots.run("ensure", *ENSURE_TINY, "--address", "127.0.0.1:1", "--run-id", "nowhere")
    assert_one_line(done, 3, "nothing answers at 127.0.0.1:1")
    assert time.monotonic() - started < limit_s
    assert roots.result("nowhere")["status"] == "error"
    assert_one_line(roots.run("ensure", *ENSURE_TINY, "--address", "nonsense"), 3, "HOST:PORT")


def test_a_root_that_is_a_file(roots: Roots) -> None:
    roots.profiles.write_text("precious", encoding="utf-8")
    assert_one_line(roots.run("ensure", *ENSURE_TINY), 3, "is a file")
    assert roots.profiles.read_text(encoding="utf-8") == "precious"
    roots.profiles.unlink()
    roots.telemetry.write_text("precious", encoding="utf-8")
    assert_one_line(roots.run("ensure", *ENSURE_TINY), 3, "telemetry root")


@pytest.mark.parametrize("place", ["logs", "container_runs", "container_runs/one"])
def test_a_folder_below_the_root_is_named_and_not_the_root(built: Built, roots: Roots, place: str) -> None:
    built.copy_to(roots)
    (roots.telemetry / place).parent.mkdir(parents=True)
    (roots.telemetry / place).touch()
    done = roots.run("ensure", *ENSURE_TINY, "--run-id", "one")
    assert_one_line(done, 3, str(roots.telemetry / place), "permissions_unexpected")


def in_namespace(roots: Roots, setup: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs it with mounts of its own, made by the shell text `setup` ($PROFILES is the root)."""
    command = ["unshare", "-rm", "sh", "-ec", setup + '\nexec "$@"', "sh", *command]
    env = {**roots.env, "PROFILES": str(roots.profiles), "TELEMETRY": str(roots.telemetry)}
    return subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


@needs_namespaces()
@pytest.mark.namespaces
def test_a_root_that_is_read_only(roots: Roots) -> None:
    roots.profiles.mkdir()
    roots.telemetry.mkdir()
    done = in_namespace(roots, 'mount -t tmpfs -o ro none "$PROFILES"', roots.command("ensure", *ENSURE_TINY))
    assert_one_line(done, 3, "permissions_unexpected", str(roots.profiles))
    done = in_namespace(roots, 'mount -t tmpfs -o ro none "$TELEMETRY"', roots.command("ensure", *ENSURE_TINY))
    assert_one_line(done, 3, "permissions_unexpected", str(roots.telemetry))


@needs_namespaces()
@pytest.mark.namespaces
def test_a_telemetry_root_that_is_full(roots: Roots) -> None:
    roots.telemetry.mkdir()
    fill = 'mount -t tmpfs -o size=64k none "$TELEMETRY"; head -c 1m /dev/zero > "$TELEMETRY/fill" 2>/dev/null || true'
    done = in_namespace(roots, fill, roots.command("ensure", "--deep-gemm", *ENSURE_TINY))
    assert_one_line(done, 3, "insufficient_disk")


@needs_torch()
@needs_namespaces()
@pytest.mark.namespaces
@pytest.mark.torch
def test_a_root_with_too_little_room_fails_before_it_builds(roots: Roots) -> None:
    roots.profiles.mkdir()
    done = in_namespace(roots, 'mount -t tmpfs -o size=8m none "$PROFILES"', roots.alone("small"))
    assert done.returncode == 13, done.stdout + done.stderr
    stage = roots.result("small")["stages"]["inductor"]
    assert stage["error_type"] == "insufficient_disk"
    error = stage["errors"][0]
    assert error["required_bytes"] > error["free_bytes"] > 0
    assert roots.result("small")["errors"][0]["stage"] == "inductor"


@needs_torch()
@needs_namespaces()
@pytest.mark.namespaces
@pytest.mark.torch
def test_a_disk_that_fills_up_in_the_middle(roots: Roots) -> None:
    roots.profiles.mkdir()
    fill_later = """
    mount -t tmpfs -o size=200m none "$PROFILES"
    ( while [ ! -e "$PROFILES/.in_progress/tiny-dense/inductor" ]; do sleep 0.1; done
      head -c 300m /dev/zero > "$PROFILES/fill" 2>/dev/null ) &
    """
    done = in_namespace(roots, fill_later, roots.alone("filled"))
    assert done.returncode == 13, done.stdout + done.stderr
    assert roots.result("filled")["stages"]["inductor"]["error_type"] == "insufficient_disk"


@needs_fuse()
def test_a_root_on_a_mount_that_has_gone(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    roots.profiles.mkdir()
    server = subprocess.Popen(["bindfs", "-f", str(tmp_path / "disk"), str(roots.profiles)])
    try:
        wait_for(lambda: os.path.ismount(roots.profiles), "bindfs to mount")
        server.kill()
        server.wait()
        assert_one_line(roots.run("ensure", *ENSURE_TINY), 3, "Transport endpoint is not connected")
    finally:
        subprocess.run(["umount", "-l", str(roots.profiles)], check=True)


@pytest.mark.torch
def test_a_cache_folder_that_is_a_link_outside(roots: Roots, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep", encoding="utf-8")
    roots.profiles.mkdir()
    (roots.profiles / "torchinductor").symlink_to(outside)
    cache = roots.inspect()["torchinductor"]
    assert (cache["valid"], cache["file_count"], cache["reason"]) == (False, 0, "not_a_plain_folder")
    done = roots.ensure_alone("linked")
    assert done.returncode == 13
    assert roots.result("linked")["stages"]["inductor"]["error_type"] in (
        "permissions_unexpected",
        "toolchain_mismatch",
    )
    assert [path.name for path in outside.iterdir()] == ["precious"]


@needs_torch()
@pytest.mark.torch
def test_nothing_is_built_through_a_link_in_a_cache(roots: Roots, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (roots.profiles / "torchinductor").mkdir(parents=True)
    (roots.profiles / "torchinductor" / "fxgraph").symlink_to(outside)
    done = roots.ensure_alone("through")
    assert done.returncode == 13, done.stdout + done.stderr
    stage = roots.result("through")["stages"]["inductor"]
    assert stage["error_type"] == "permissions_unexpected"
    assert "holds 1 links" in stage["errors"][0]["message"]
    assert not list(outside.iterdir())


def test_links_and_odd_names_inside_a_cache_are_named_and_left_alone(roots: Roots, tmp_path: Path) -> None:
    cache = roots.profiles / "torchinductor"
    cache.mkdir(parents=True)
    (tmp_path / "secret").write_text("x" * 1000, encoding="utf-8")
    (cache / "link").symlink_to(tmp_path / "secret")
    (cache / "loop").symlink_to(cache)
    Path(os.fsdecode(os.fsencode(cache) + b"/\xff\xfe.so")).write_bytes(b"odd")
    (cache / "plain.so").write_bytes(b"plain")
    snapshot = roots.inspect()["torchinductor"]
    assert (snapshot["file_count"], snapshot["size_bytes"]) == (1, 5)
    assert snapshot["warnings"] == ["2 links, none of them followed", "1 files whose names are not UTF-8, left out"]
    table = roots.run("inspect")
    assert table.returncode == 0
    assert "not UTF-8" in table.stdout


@needs_root()
def test_files_of_another_owner_are_named(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    for path in (roots.profiles / "torchinductor").rglob("*.so"):
        os.chown(path, 12345, 12345)
    cache = roots.inspect()["torchinductor"]
    assert cache["valid"] is True
    assert "files of another owner" in cache["warnings"][0]


@needs_torch()
@needs_namespaces()
@pytest.mark.namespaces
@pytest.mark.torch
def test_a_folder_in_the_cache_that_cannot_be_written(roots: Roots) -> None:
    (roots.profiles / "torchinductor" / "ab").mkdir(parents=True)
    setup = 'mount -t tmpfs -o ro none "$PROFILES/torchinductor/ab"'
    done = in_namespace(roots, setup, roots.alone("locked-out"))
    assert done.returncode == 13
    stage = roots.result("locked-out")["stages"]["inductor"]
    assert stage["error_type"] == "permissions_unexpected"
    assert "torchinductor/ab" in stage["errors"][0]["message"]


@needs_torch()
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "completion_unreadable"),
        (lambda _: "", "completion_unreadable"),
        (
            lambda text: resealed(
                text, lambda inner: inner.replace('"schema_version":"2"', '"schema_version":"99"', 1)
            ),
            "completion_of_another_format",
        ),
        (lambda text: text.replace('"stage":"inductor"', '"stage":"from_the_future"', 1), "completion_unreadable"),
        (lambda text: text.replace('"torchinductor/', '"torchinductor/../../../', 1), "completion_unreadable"),
        (lambda text: text.replace('"torchinductor/', '"torchinductor/gone', 1), "completion_unreadable"),
        (
            lambda text: resealed(text, lambda inner: inner.replace('"torchinductor/', '"torchinductor/gone', 1)),
            "files_missing",
        ),
        (lambda text: text.replace('"artifacts"', '"aruifacts"', 1), "completion_unreadable"),
    ],
    ids=["truncated", "empty", "newer", "unknown-stage", "escaping", "changed", "missing-file", "flipped-bit"],
)
def test_completions_that_cannot_be_believed_mean_build_again(
    built: Built, roots: Roots, damage: Callable[[str], str], reason: str
) -> None:
    built.copy_to(roots)
    path = next((roots.profiles / ".rayprep" / "inductor").glob("*.json"))
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    damaged = path.read_bytes()
    assert roots.inspect()["torchinductor"]["valid"] is False
    plan = roots.run("ensure", *ENSURE_TINY, "--dry-run")
    assert plan.returncode == 0
    assert f"inductor: build, {reason}" in plan.stdout
    assert path.read_bytes() == damaged


@needs_torch()
def test_a_field_that_is_not_known_is_ignored(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    path = next((roots.profiles / ".rayprep" / "inductor").glob("*.json"))
    text = resealed(path.read_text(encoding="utf-8"), lambda inner: '{"added_later": [1, 2],' + inner[1:])
    path.write_text(text, encoding="utf-8")
    assert roots.inspect()["torchinductor"]["valid"] is True


@pytest.mark.parametrize("content", ["", "{", '{"owner_pid": "me"}', '{"owner_pid": 1, "started_at": "2099-01-01"}'])
def test_a_marker_that_cannot_be_read_still_stands(built: Built, roots: Roots, content: str) -> None:
    built.copy_to(roots)
    marker = roots.marker("tiny-dense", "inductor")
    marker.parent.mkdir(parents=True)
    marker.write_text(content, encoding="utf-8")
    cache = roots.inspect()["torchinductor"]
    assert (cache["valid"], cache["partial"], cache["reason"]) == (False, True, "in_progress_or_aborted")
    assert "in_progress_or_aborted (tiny-dense, whose marker is damaged)" in roots.run("inspect").stdout
    explained = roots.run("explain", *ENSURE_TINY).stdout
    assert "inductor: build, in_progress_or_aborted (whose marker is damaged)" in explained


def test_a_clock_that_was_set_back(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    future = time.time() + 10 * 365 * 86400
    for path in (roots.profiles / "torchinductor").rglob("*"):
        os.utime(path, (future, future))
    cache = roots.inspect()["torchinductor"]
    assert cache["valid"] is True
    assert cache["newest_age_s"] == 0
    assert cache["latest_mtime_iso"].startswith("203")
    assert roots.run("ensure", *ENSURE_TINY).stdout.endswith(" inductor:noop serve:skipped verify:skipped\n")
