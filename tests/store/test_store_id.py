"""The nonce of a profiles root."""

from pathlib import Path

from rayprep.base.errors import HostUnfit
from rayprep.store.store_id import store_id
from tests.store.caches import layout_in


def test_a_store_has_one_id_and_no_damaged_bit_makes_another_of_it(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    name = store_id(layout)
    assert store_id(layout) == name
    whole = layout.store_id.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            layout.store_id.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                assert store_id(layout) == name
            except HostUnfit as error:
                assert str(layout.store_id) in error.line
    for start in range(len(whole)):
        for end in range(start, len(whole)):
            layout.store_id.write_bytes(whole[:start] + whole[end:])
            try:
                assert store_id(layout) == name
            except HostUnfit as error:
                assert str(layout.store_id) in error.line


def test_an_earlier_versions_id_stays(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.store_id.parent.mkdir(parents=True)
    layout.store_id.write_text("0123456789abcdef\n", encoding="ascii")
    assert store_id(layout) == "0123456789abcdef"
