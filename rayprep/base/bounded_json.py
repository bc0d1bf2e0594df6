"""JSON from elsewhere, looked through before a parser makes objects of it.

A parser may need a hundred bytes for one byte of text. These checks need next to none, and refuse what no writer of
ours writes: more values than are asked for, deep nesting, numbers that are none, and a key that stands twice.
"""

import json
import math
import re
from collections.abc import Iterator

LONGEST_RUN = 1 << 15
"""Bytes without a quotation mark. No name, digest or number of ours comes near."""
MOST_WIDE = 1 << 20
"""Bytes of all strings that are not ASCII: paths of models and of roots, and no names of cached files."""
DEEPEST = 32
_LONGEST_NUMBER = 30
_SHOWN = 100
"""Bytes of the text that a message shows."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_NUMBERS = rb"[\s,]++|-?[0-9]{1,20}(?=[\s,\]}])"
# What needs no look is passed over: a file of a package, which has thousands, takes two matches and not seven.
_TOKEN = re.compile(
    rb"(?:%b|\[(?:%b|%b)*+\])*+"
    rb"(?:(?P<text>%b)(?P<key>\s*:)?|(?P<begin>[\[{])|(?P<end>[\]}])|(?P<other>[^\s,\[\]{}\"]+|\")|\Z)"
    % (_NUMBERS, _NUMBERS, _STRING, _STRING),
    re.DOTALL,
)
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = (b"true", b"false", b"null")


class OutOfBounds(ValueError):
    """A text is no JSON, or larger than may be; its message, of one line, says how."""


def check_sizes(text: bytes, most_bytes: int, most_values: int, most_objects: int) -> None:
    """Bounds what a parser can make of a text.

    Args:
        most_values: arrays, objects, and the members of all of them. Their marks inside a string count too.
        most_objects: of which a model may say of each that all its fields are missing.

    Raises:
        OutOfBounds: it is larger.
    """
    if len(text) > most_bytes:
        raise OutOfBounds(f"it has {len(text)} bytes, {most_bytes} are the most")
    for start in range(0, len(text) - LONGEST_RUN, LONGEST_RUN):
        if text.find(b'"', start, start + LONGEST_RUN) < 0:
            raise OutOfBounds(f"{LONGEST_RUN} bytes of it, from byte {start} on, are one value")
    # Python keeps a string in which one character is wide in up to four bytes for each.
    if not text.isascii() and sum(len(run) for run in _runs(text) if not run.isascii()) > MOST_WIDE:
        raise OutOfBounds(f"more than {MOST_WIDE} bytes of it are strings that are not ASCII")
    if (values := sum(text.count(mark) for mark in (b",", b"[", b"{"))) > most_values:
        raise OutOfBounds(f"it has {values} values, {most_values} are the most")
    if (objects := text.count(b"{")) > most_objects:
        raise OutOfBounds(f"it has {objects} objects, {most_objects} are the most")


def _runs(text: bytes) -> Iterator[bytes]:
    return (run[0] for run in re.finditer(rb'[^"]+', text))


def check_values(text: bytes, most_keys: int) -> None:
    """Bounds the values themselves. Call it after `check_sizes`; whether it is JSON otherwise is for a parser to say.

    Args:
        most_keys: of all objects together.

    Raises:
        OutOfBounds: it has more, is nested too deep, names a key twice in an object, or holds a number that is none:
            NaN, Infinity, one of too many digits.
    """
    outer: list[set[bytes]] = []
    names: set[bytes] = set()
    left = most_keys
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "key":
            left -= 1
            if left < 0:
                raise OutOfBounds(f"it has more than {most_keys} keys")
            name = token["text"]
            if b"\\" in name:
                name = _unescaped(name)
            if name in names:
                raise OutOfBounds(f"{_shown(name)} stands twice in an object")
            names.add(name)
        elif kind == "begin":
            outer.append(names)
            names = set()
            if len(outer) > DEEPEST:
                raise OutOfBounds(f"it is nested more than {DEEPEST} deep")
        elif kind == "end":
            names = outer.pop() if outer else set()
        elif kind == "other":
            _check_word(token["other"])


def _check_word(word: bytes) -> None:
    if word in _WORDS:
        return
    if len(word) > _LONGEST_NUMBER or not _NUMBER.fullmatch(word) or math.isinf(float(word)):
        raise OutOfBounds(f"{_shown(word)} is no number")


def _unescaped(name: bytes) -> bytes:
    try:
        return b'"%b"' % str(json.loads(name)).encode(errors="surrogatepass")
    except ValueError:
        raise OutOfBounds(f"{_shown(name)} is no name") from None


def _shown(text: bytes) -> str:
    return text[:_SHOWN].decode(errors="backslashreplace")
