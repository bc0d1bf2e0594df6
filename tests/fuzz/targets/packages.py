"""Packages: nothing goes outside the root, nothing comes in that is not listed, and each completion holds."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

from rayprep.base.errors import RayprepError
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import check_completion
from rayprep.store.package.archive_file import open_to_read
from rayprep.store.package.manifest import MANIFEST_NAME
from rayprep.store.package.tar_stream import PackageReader, header, padding
from rayprep.store.package.unpack import preview
from rayprep.store.snapshot import wrong_hashes
from tests.fuzz.target import Target, require
from tests.model.samples import signature
from tests.store.package.archives import FLASHINFER, GRAPHS, INDUCTOR, MODULE, archive, at, every, finished, take


def _good(folder: Path) -> bytes:
    source = at(folder)
    finished(source, INDUCTOR, GRAPHS)
    finished(source, FLASHINFER, MODULE)
    return archive(source)


def _manifest_of(data: bytes) -> tuple[bytes, bytes]:
    """The text of the first member, and all that comes behind it."""
    size = int(data[124:135], 8)
    return data[512 : 512 + size], data[512 + size + -size % 512 :]


def _with_manifest(text: bytes, rest: bytes) -> bytes:
    return header(MANIFEST_NAME, len(text)) + text + padding(len(text)) + rest


class FreshRoot:
    """A root into which one package goes, and what may lie beside it: nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, data: bytes) -> str:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        layout = Layout(self._folder / "profiles", self._folder / "telemetry")
        layout.profiles.mkdir()
        try:
            take(layout, data)
        except RayprepError:
            require(not _placed(layout) and not every(layout), "refused, and something of it is there")
            raise
        finally:
            require({path.name for path in self._folder.iterdir()} == {"profiles"}, "it wrote outside the root")
        self._check(layout, data)
        return "taken"

    def _check(self, layout: Layout, data: bytes) -> None:
        listed = {file.path: file.listed for file in PackageReader(io.BytesIO(data)).manifest.files}
        placed = _placed(layout)
        require(placed.items() <= listed.items(), "something came in that is not listed")
        sizes = {path: size for path, (size, _) in placed.items()}
        for each in every(layout):
            require(check_completion(each, signature(), sizes).valid, "a completion came in that does not hold")
            require(not wrong_hashes(layout.profiles, each), "a completion came in with other files")


def _placed(layout: Layout) -> dict[str, tuple[int, str]]:
    """Every file in a cache, as a package lists it."""
    found = {}
    for path in layout.profiles.rglob("*"):
        below = path.relative_to(layout.profiles).as_posix()
        if path.is_file() and not below.startswith("."):
            require(below.partition("/")[0] in set(CacheName), f"{below} lies in no cache")
            data = path.read_bytes()
            found[below] = (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
    return found


def package_targets(folder: Path) -> list[Target]:
    """The archive as it is, its manifest alone, and the archive compressed."""
    good = _good(folder / "source")
    manifest, rest = _manifest_of(good)
    json.loads(manifest)
    root = FreshRoot(folder / "fresh")

    def read_manifest(text: bytes) -> str:
        return root.take(_with_manifest(text, rest))

    return [
        Target("package", good, root.take, "taken", 0.6),
        Target("manifest of a package", manifest, read_manifest, "taken", every_value=2),
        *_compressed(folder / "compressed", good),
    ]


def _compressed(folder: Path, good: bytes) -> list[Target]:
    """None where there is no zstd program."""
    program = shutil.which("zstd")
    if program is None:
        return []
    layout = at(folder)
    path = folder / "package.tar.zst"
    small = subprocess.run([program, "-qc"], input=good, capture_output=True, check=True).stdout

    def read(data: bytes) -> str:
        path.write_bytes(data)
        with open_to_read(str(path)) as stream:
            preview(layout, stream, signature())
        return "proved"

    return [Target("package, compressed", small, read, "proved", 0.3)]
