"""What a source sends, without a cluster."""

from pathlib import Path

import pytest

from rayprep.fleet.agent import shared_stream, shipping
from rayprep.fleet.agent.shared_stream import KEPT
from rayprep.fleet.agent.shipping import Packages
from rayprep.host.layout import Layout
from rayprep.model.stages import StageName
from rayprep.store.completions import write_completion
from rayprep.store.scan import hash_files
from tests.model.samples import completion
from tests.store.caches import fill


def test_who_lags_is_sent_the_rest_without_what_it_has_being_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large cache on slow storage that would take longer than the receiver waits for a sign of life."""
    monkeypatch.setattr(shipping, "PIECE", 1)  # so that each file is a piece
    monkeypatch.setattr(shared_stream, "PATIENCE_S", 0.0)
    layout, files = Layout(tmp_path / "p", tmp_path / "t"), {f"triton/{n:02}/k.cubin": "k" * n for n in range(3 * KEPT)}
    fill(layout, files)
    hashes = hash_files(layout.profiles, files)
    made = completion(StageName.SERVE, artifacts={path: (len(text), hashes[path]) for path, text in files.items()})
    write_completion(layout, made)

    packages, key = Packages(), (made.stage, made.key)
    slow, quick = packages.pieces(layout, [key]), packages.pieces(layout, [key])
    has = [bytes(next(slow)) for _ in range(3)]
    whole = [bytes(piece) for piece in quick]
    for path in [*files][:2]:
        (layout.profiles / path).unlink()
    assert [*has, *map(bytes, slow)] == whole
