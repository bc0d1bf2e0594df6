"""JSON from elsewhere, looked through before a parser makes objects of it.

A parser needs up to a hundred bytes for one byte of text. These checks cost no more than a copy of the text, and
refuse what no writer of ours writes: more values than are asked for, numbers that are none, and keys that stand twice.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence

LONGEST_RUN = 1 << 15
"""Bytes without a quotation mark. No name, digest or number of ours comes near."""
_LONGEST_NUMBER = 30
_LONGEST_NAME = 100
"""Characters of a key that a message shows."""


class OutOfBounds(ValueError):
    """A text is no JSON, or larger than may be; its message, of one line, says how."""


def check_sizes(text: bytes, most_bytes: int, most_values: int) -> None:
    """Bounds what a parser can make of a text. Takes no memory.

    Args:
        most_values: arrays, objects, and the members of all of them. Their marks inside a string count too.

    Raises:
        OutOfBounds: it is larger.
    """
    if len(text) > most_bytes:
        raise OutOfBounds(f"it has {len(text)} bytes, {most_bytes} are the most")
    # A long text of many bytes a character takes four times its bytes, so no string may be long.
    for start in range(0, len(text) - LONGEST_RUN, LONGEST_RUN):
        if text.find(b'"', start, start + LONGEST_RUN) < 0:
            raise OutOfBounds(f"{LONGEST_RUN} bytes of it, from byte {start} on, are one string or none")
    if (values := sum(text.count(mark) for mark in (b",", b"[", b"{"))) > most_values:
        raise OutOfBounds(f"it has {values} values, {most_values} are the most")


def check_values(text: bytes) -> None:
    """Call it after `check_sizes`.

    Raises:
        OutOfBounds: it is no JSON, nested too deep, names a key twice, or holds a number that is none: NaN, Infinity,
            one of too many digits.
    """
    try:
        # Latin-1 keeps one byte a character, and leaves all that structures JSON as it is.
        json.loads(
            text.decode("latin-1"),
            object_pairs_hook=_check_keys,
            parse_int=_check_number,
            parse_float=_check_number,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise OutOfBounds("it is nested too deep") from None
    except json.JSONDecodeError as error:
        raise OutOfBounds(f"it is no JSON: {error}") from None


def _check_keys(pairs: Sequence[tuple[str, object]]) -> None:
    """Returns nothing, so that no object is kept."""
    if len({name for name, _ in pairs}) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        name = twice[:_LONGEST_NAME].encode("latin-1", "backslashreplace").decode(errors="backslashreplace")
        raise OutOfBounds(f"{name} stands twice in an object")


def _check_number(digits: str) -> None:
    if len(digits) > _LONGEST_NUMBER or math.isinf(float(digits)):
        raise OutOfBounds(f"{digits[:_LONGEST_NUMBER]} is no number of ours")


def _refuse_constant(name: str) -> None:
    raise OutOfBounds(f"{name} is no number")
