"""Real caches under a real root: files, and completions that list them."""

from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.completion import Completion
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.scan import hash_files
from tests.model.samples import completion

BUILT = {
    "torchinductor/ab/cab.so": "so!",
    "torchinductor/fxgraph/zz/key/graph": "graph",
    "torchinductor/locks/x.lock": "",
}
ARTIFACTS = ("torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph")


def layout_in(folder: Path) -> Layout:
    return Layout(folder / "profiles", folder / "telemetry")


def fill(layout: Layout, files: dict[str, str]) -> None:
    for path, text in files.items():
        (layout.profiles / path).parent.mkdir(parents=True, exist_ok=True)
        (layout.profiles / path).write_text(text, encoding="utf-8")


def built(layout: Layout, stage: StageName = StageName.INDUCTOR, **changes: object) -> Completion:
    """A completion, written, that lists the artifacts as they lie there now."""
    fill(layout, BUILT)
    hashes = hash_files(layout.profiles, ARTIFACTS)
    sizes = {path: len(BUILT[path]) for path in ARTIFACTS}
    listed = {path: (sizes[path], hashes[path]) for path in ARTIFACTS}
    made = completion(stage, **{"artifacts": listed, **changes})
    write_completion(layout, made)
    return made
