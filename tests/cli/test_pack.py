"""`rayprep pack` and `unpack` as a user runs them: from a built cache to a host without it."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rayprep.store.package.manifest import MANIFEST_NAME
from tests.conftest import ENSURE_TINY, Built, Roots
from tests.needs import needs_tool, needs_torch
from tests.test_schemas import check


def printed(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    check("package_report", loaded)
    return loaded


@needs_torch()
@needs_tool("zstd")
@pytest.mark.ray
def test_a_model_goes_where_its_caches_are_looked_for(built: Built, roots: Roots, tmp_path: Path) -> None:
    file = tmp_path / "tiny.tar.zst"
    packed = printed(built.roots.run("pack", "tiny-dense", "--device", "cpu", "--output", str(file), "--json"))
    assert packed["files"] > 5
    assert packed["sha256"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    listing = ["tar", "-x", "--zstd", "-O", "-f", str(file), MANIFEST_NAME]
    manifest = subprocess.run(listing, capture_output=True, check=True)
    check("package_manifest", json.loads(manifest.stdout))
    same = printed(built.roots.run("unpack", str(file), "--device", "cpu", "--dry-run", "--json"))
    assert (same["kept"], same["completions"], same["files"]) == (packed["completions"], [], 0)
    digest = packed["sha256"].removeprefix("sha256:").upper()
    meant = printed(built.roots.run("unpack", str(file), "--device", "cpu", "--dry-run", "--json", "--sha256", digest))
    assert meant == same | {"sha256": packed["sha256"]}
    other = built.roots.run("unpack", str(file), "--device", "cpu", "--sha256", "0" * 64)
    assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
    assert {packed["sha256"], "sha256:" + "0" * 64} <= set(other.stderr.replace(",", " ").split())
    elsewhere = roots.run("unpack", str(file), "--device", "cpu")
    assert (elsewhere.returncode, len(elsewhere.stderr.splitlines())) == (3, 1)
    assert f"profiles_root was {built.roots.profiles}, is {roots.profiles}" in elsewhere.stderr
    assert not roots.profiles.exists()


@needs_torch()
@pytest.mark.ray
def test_a_key_goes_through_a_pipe_and_needs_no_build_then(built: Built, roots: Roots) -> None:
    """TorchInductor's caches do not bind to their path."""
    key = next((built.roots.profiles / ".rayprep" / "inductor").glob("*.json")).stem
    packed = subprocess.run(
        built.roots.command("pack", key, "--output", "-"), env=built.roots.env, capture_output=True, check=True
    )
    assert b"packed into -" in packed.stderr
    command = roots.command("unpack", "-", "--device", "cpu")
    done = subprocess.run(command, env=roots.env, input=packed.stdout, capture_output=True, check=True)
    assert f"  inductor/{key}\n" in done.stdout.decode()
    again = roots.run("ensure", *ENSURE_TINY, "--run-id", "again", "--json", "--deep")
    assert again.returncode == 0, again.stdout + again.stderr
    assert roots.result("again")["stages"]["inductor"]["status"] == "noop"


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (("pack", "no-such", "--output", "OUT"), 2, "has no completion no-such"),
        (("pack", "no-such", "--output", "none/OUT"), 2, "has no completion no-such"),
        (("unpack", "none.tar", "--device", "cpu"), 2, "cannot be read: No such file or directory (give another FILE)"),
        (("snapshot", "--manifest", "none.json"), 2, "none.json cannot be read: No such file or directory (give a"),
        (("unpack", "none.tar", "--device", "tpu"), 2, "use auto, cuda or cpu"),
        (("unpack", __file__, "--device", "cpu"), 2, "no tar archive"),
        (("unpack", "none.tar", "--device", "cpu", "--sha256", "abc"), 2, "'abc' is no SHA-256 digest"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, why: str
) -> None:
    monkeypatch.chdir(roots.base)
    done = roots.run(*args)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert why in done.stderr
    assert not list(roots.base.glob("*OUT*"))
    assert not roots.profiles.exists()
