"""Real containers: a podman with a store of its own, and an image whose programs are this machine's.

The image has what cluster/container/Dockerfile.gh200 would put there of ours, devuser included. Its /usr, Python and
packages are the machine's, mounted: an image of Debian's would take minutes to make, and show nothing more.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = "rayprep-test:latest"
STEP_S = 120.0

CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{base}/tmp"
"""
"""Root may not raise its limits everywhere, and systemd does not run in a container or a small machine."""

STORAGE_CONF = """\
[storage]
driver = "vfs"
graphroot = "{base}/store"
runroot = "{base}/run"
"""
"""vfs copies each layer, which are small here, and leaves no mount behind as overlay does."""


class Podman:
    """In `base`: everything that it keeps. The machine's own containers and images are not seen."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "tmp").mkdir()
        conf, storage = base / "containers.conf", base / "storage.conf"
        conf.write_text(CONTAINERS_CONF.format(base=base), encoding="utf-8")
        storage.write_text(STORAGE_CONF.format(base=base), encoding="utf-8")
        self.env = {"CONTAINERS_CONF": str(conf), "CONTAINERS_STORAGE_CONF": str(storage)}

    def ask(self, *args: str) -> str:
        done = subprocess.run(
            ["podman", *args],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def containers(self) -> list[str]:
        return self.ask("ps", "--all", "--format", "{{.Names}}").split()

    def close(self) -> None:
        for name in self.containers:
            self.ask("rm", "--force", "--time", "0", name)

    def make_image(self) -> None:
        tree = self.base / "tree"
        lay_out(tree)
        with tarfile.open(self.base / "tree.tar", "w") as archive:
            archive.add(tree, arcname=".")
        entrypoint = json.dumps(["/usr/bin/tini", "--", "/opt/rayprep/container/entrypoint"])
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/usr/sbin"
        changes = (f"ENTRYPOINT {entrypoint}", f"ENV PATH={path}", f"ENV PYTHONPATH={ROOT}")
        self.ask("import", *(f"--change={change}" for change in changes), str(self.base / "tree.tar"), IMAGE)


def lay_out(tree: Path) -> None:
    """The image's own files."""
    for folder in ("etc", "home/devuser", "opt/rayprep", "models", "profiles", "telemetry", "run", "usr", "var/tmp"):
        (tree / folder).mkdir(parents=True)
    (tree / "tmp").mkdir(mode=0o1777)
    (tree / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ndevuser:x:1000:1000::/home/devuser:/bin/bash\n")
    os.chown(tree / "home/devuser", 1000, 1000)
    (tree / "etc/group").write_text("root:x:0:\ndevuser:x:1000:\n")
    shutil.copy2("/etc/ld.so.cache", tree / "etc")
    shutil.copytree("/etc/alternatives", tree / "etc/alternatives", symlinks=True)
    for folder in ("container", "observability"):
        shutil.copytree(ROOT / "cluster" / folder, tree / "opt/rayprep" / folder)


def borrowed() -> list[str]:
    """What a container needs of this machine, as options for podman: it can write to none of it."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    folders = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), ROOT, Path(torch.origin).parents[1]}
    inner = {folder for folder in folders if any(other in folder.parents for other in folders)}
    return [f"--volume={folder}:{folder}:ro" for folder in sorted(folders - inner)]
