"""Two stores with real files, and what goes from one to the other as an archive."""

import io
import os
from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.completion import Completion, check_completion
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.markers import Marker
from rayprep.store.package.manifest import PackageReport
from rayprep.store.package.pack import pack
from rayprep.store.package.unpack import Receipt, receive
from rayprep.store.scan import hash_files
from rayprep.store.snapshot import wrong_hashes
from tests.model.samples import completion, identity, signature
from tests.store.caches import fill

MODULES = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops"
MODULE = {
    f"{MODULES}/norm/norm.so": "norm",
    f"{MODULES}/norm/norm.cuda.o": "object",
    f"{MODULES}/norm/build.ninja": "rule",
    f"{MODULES}/norm/.ninja_log": "log",
    f"{MODULES}/norm/x.lock": "",
}
GRAPHS = {
    "torchinductor/ab/cab.so": "so!",
    "torchinductor/ab/cab.cpp": "cpp",
    "torchinductor/fxgraph/zz/key/graph": "graph",
    f"torchinductor/fxgraph/zz/{'long' * 40}/graph": "a name over 100 bytes",
    "torchinductor/aotautograd/ä/empty": "",
}
COMPANIONS = {path for path in MODULE if path.endswith(("ninja", "_log"))}
OLD = 1_700_000_000_123_456_789
INDUCTOR, FLASHINFER = StageName.INDUCTOR, StageName.FLASHINFER
WHO = Receipt(run_id="r")
DEAD = Marker(owner_pid=1, started_at=completion().started_at, run_id="dead", host="h")


def finished(layout: Layout, stage: StageName, files: dict[str, str], slug: str = "qwen") -> Completion:
    """Files, each with a time of its own, and the completion that lists their artifacts."""
    fill(layout, files)
    for number, path in enumerate(sorted(files)):
        os.utime(layout.profiles / path, ns=(OLD + number, OLD + number))
    listed = [path for path in files if path not in COMPANIONS and not path.endswith(".lock")]
    hashes = hash_files(layout.profiles, listed)
    artifacts = {path: (len(files[path].encode()), hashes[path]) for path in sorted(listed)}
    made = completion(stage, identity=identity(model_slug=slug), artifacts=artifacts)
    write_completion(layout, made)
    return made


def at(folder: Path) -> Layout:
    (folder / "profiles").mkdir(parents=True)
    return Layout(folder / "profiles", folder / "telemetry")


def every(layout: Layout) -> list[Completion]:
    return [each for stage in StageName for each in read_completions(layout, stage)[0]]


def archive(layout: Layout) -> bytes:
    out = io.BytesIO()
    pack(layout, every(layout), out)
    return out.getvalue()


def take(layout: Layout, data: bytes, receipt: Receipt = WHO) -> PackageReport:
    return receive(layout, io.BytesIO(data), signature(), receipt)


def there(layout: Layout) -> dict[str, tuple[str, int]]:
    """Every file but locks: its content and its time of change, or only the content of what is written anew.

    What a killed writer of one of our own files left beside it is looked at by nobody.
    """
    top, found = layout.profiles, {}
    for path in (each for each in top.rglob("*") if not each.is_dir() and ".locks" not in each.parts):
        name = path.relative_to(top).as_posix()
        if name[0] == "." and path.suffix == ".tmp":
            continue
        found[name] = (path.read_text(encoding="utf-8"), 0 if name[0] == "." else path.lstat().st_mtime_ns)
    return found


def packable(layout: Layout) -> dict[str, tuple[str, int]]:
    return {path: found for path, found in there(layout).items() if not path.endswith(".lock")}


def assert_nothing_half(layout: Layout) -> None:
    """What reads as valid, by its size and without a marker, is so byte for byte."""
    for each in every(layout):
        sizes = {path: (layout.profiles / path).stat().st_size for path in hash_files(layout.profiles, each.artifacts)}
        marked = layout.marker(each.identity.model_slug, each.stage).exists()
        if not marked and check_completion(each, signature(), sizes).valid:
            assert wrong_hashes(layout.profiles, each) == ()
