"""Text that is refused before a parser makes objects of it, and text that is not."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.bounded_json import DEEPEST, MOST_WIDE, OutOfBounds, check_sizes, check_values

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


def check(text: bytes, most_keys: int = 1000) -> None:
    check_sizes(text, 1 << 24, 1000, 100)
    check_values(text, most_keys)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_what_json_writes_is_taken(value: object, indent: int | None, ascii_only: bool) -> None:
    check(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode())


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"b":2,"a":3}',
        b'{"a":{"b":[{"c":1,"c":1}]}}',
        rb'{"a":1,"\u0061":2}',
        rb'{"a\"":1,"a\"":2}',
        b'{"a": 1, "a" : 2}',
        b"[NaN]",
        b'{"a":Infinity}',
        b"-Infinity",
        b"[1e999]",
        b'{"a":[1,"b",-1e999]}',
        b"1" * 5000,
        b"[" + b"0." + b"1" * 5000 + b"]",
        b"\xef\xbb\xbf{}",
        b'"never ends',
        b"[" * (DEEPEST + 1),
        b'{"a":' * (DEEPEST + 1),
        b"[1," * 999,
        b"[]," * 1000,
        b'"' + b"x" * (1 << 17) + b'"',
        b" " * (1 << 17),
        b'"' + b"x" * 9999 + "\N{GRINNING FACE}".encode() + b'"' + b',"aaaa\xf0\x9f\x98\x80"' * (MOST_WIDE // 10),
        b"{}" * 101,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_no_writer_of_ours_writes_is_refused(text: bytes) -> None:
    with pytest.raises(OutOfBounds) as raised:
        check(text)
    assert len(str(raised.value)) < 300
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("text", [b'"\\"' * (1 << 20), b'"",' * (1 << 20), b"[1,\n" * (1 << 20), b'["' * (1 << 20)])
def test_no_text_takes_long(text: bytes) -> None:
    began = time.monotonic()
    with contextlib.suppress(OutOfBounds):
        check_values(text, 1 << 20)
    assert time.monotonic() - began < 30, "a search that begins again at each byte takes hours"


def test_the_keys_of_all_objects_are_counted() -> None:
    check(b'[{"a":{"b":1}},{"c":1}]', most_keys=3)
    with pytest.raises(OutOfBounds, match="more than 2 keys"):
        check(b'[{"a":{"b":1}},{"c":1}]', most_keys=2)
