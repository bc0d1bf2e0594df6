"""Names from elsewhere become one plain part of a path, each its own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.file_names import file_name, is_file_name

STRANGE = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b", "a\nb", ".hidden", "-rf", "é", "a" * 5000, "\udcff"]


@pytest.mark.parametrize("name", ["gpu-00", "GPU-5e3d7c41", "node_1.cluster.local", "qwen2.5-7b-tp1-0123456789abcdef"])
def test_a_plain_name_stays(name: str) -> None:
    assert file_name(name) == name
    assert is_file_name(name)


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_becomes_one_plain_part(name: str) -> None:
    plain = file_name(name)
    assert Path(plain).name == plain
    assert plain.isascii()
    assert plain.isprintable()
    assert plain[0] not in ".-"
    assert len(plain) < 200
    assert file_name(plain) == plain
    assert not is_file_name(name)


def test_no_two_names_give_one_file() -> None:
    names = [*STRANGE, "a-b", "x", "a+b", "b", "A"]
    assert len({file_name(name) for name in names}) == len(names)


@given(st.text())
def test_any_text_stays_in_its_folder(name: str) -> None:
    folder = Path("/root-of-ours")
    assert (folder / file_name(name)).parent == folder
