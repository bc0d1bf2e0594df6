"""What is not ours, as text that prints."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.text import one_line, printable, printable_json
from tests.foreign import NASTY

ANY = st.text(st.characters())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\a", r"\x1b]0;x\x07"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x7f\x9b31m\x85", r"\x7f\x9b31m\x85"),
        ("\u202e\u2066\u2028\u200b", r"\u202e\u2066\u2028\u200b"),
        ("\ue000\U000e0001", r"\ue000\U000e0001"),
        (os.fsdecode(b"a\xff\xc3\xbc"), r"a\xffü"),
        ("\ud83d", r"\ud83d"),
        ("C:\\path  with two blanks, кэш 🙂", "C:\\path  with two blanks, кэш 🙂"),
    ],
)
def test_what_does_not_print_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY)
def test_whatever_it_is_prints_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_message_is_one_line(text: str) -> None:
    assert one_line(f" first\n  {text}  ").isprintable()
    assert one_line(" first\n second  word ") == "first second word"


@given(VALUES, st.sampled_from(["utf-8", "ascii", "latin-1", "utf-16"]), st.sampled_from([None, 2]))
def test_json_has_the_same_value_in_any_encoding(value: object, encoding: str, indent: int | None) -> None:
    plain = json.dumps(value, indent=indent, ensure_ascii=False)
    shown = printable_json(plain, encoding)
    assert json.loads(shown) == json.loads(plain)
    assert shown.count("\n") == plain.count("\n")
    assert all(line.isprintable() for line in shown.split("\n"))
    shown.encode(encoding)


def test_json_that_prints_stays_as_it_is() -> None:
    plain = json.dumps({"path": "/кэш/é 🙂"}, indent=2, ensure_ascii=False)
    assert printable_json(plain) == plain
    assert printable_json('"\u202e\U000e0001"') == r'"\u202e\udb40\udc01"'
