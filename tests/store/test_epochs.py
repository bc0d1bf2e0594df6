"""The highest epoch that a store has seen, and what of it can be damaged."""

import json
from pathlib import Path

import pytest

from rayprep.base.errors import HostUnfit, StageError
from rayprep.store.epochs import advance_epoch, highest_epoch
from tests.store.caches import layout_in


def test_an_epoch_only_grows_and_no_damaged_bit_makes_another_of_it(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    path = layout.profiles / ".rayprep" / "epochs" / "key"
    assert highest_epoch(layout, "key") is None
    advance_epoch(layout, "key", 17)
    assert (highest_epoch(layout, "key"), json.loads(path.read_bytes())["epoch"]) == (17, 17)
    with pytest.raises(StageError):
        advance_epoch(layout, "key", 16)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                assert highest_epoch(layout, "key") == 17
            except HostUnfit as error:
                assert str(path) in error.line


def test_an_earlier_versions_epoch_counts_and_is_sealed_when_the_next_comes(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    path = layout.profiles / ".rayprep" / "epochs" / "key"
    path.parent.mkdir(parents=True)
    path.write_text("8\n", encoding="ascii")
    assert highest_epoch(layout, "key") == 8
    advance_epoch(layout, "key", 9)
    assert b"checksum" in path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"\n", b"-1\n", b"eight", b"\xff", b"9" * 5000, b'{"epoch":1}'])
def test_what_is_no_epoch_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    layout = layout_in(tmp_path)
    path = layout.profiles / ".rayprep" / "epochs" / "key"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(HostUnfit, match="epoch file"):
        highest_epoch(layout, "key")
