"""Ways to damage a file, from one bit to its whole form. Pure: a seeded `Random` decides, so each can be made again."""

import json
import re
from collections.abc import Callable, Iterator
from random import Random

Mutator = Callable[[bytes, Random], bytes]

_BYTES = b'\x00\xff"{},\n\\0'
_LONGEST_SPAN = 64
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*')
_DIGITS = re.compile(rb"\d+(?:\.\d+)?")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_DEPTH = 100_000
_LARGE = 1 << 20
_NUMBERS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"-1", b"0", b"1e999", b"-0.0", b"1e-400", b"1" + b"0" * 400),
    b"9" * 5000,
    b"%d" % 2**63,
)
_TEXTS = (
    *(rb"\ud800", rb"\u0000", rb"\u202e", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u202e".encode(), "\u2028".encode()),
    *(b"../../../x", b"/", b"%s%n", b"\x1b]0;x\x07", b"x" * 200_000),
)
_VALUES = (b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"3", b"[[]]", b'{"a":{"b":[]}}', *_NUMBERS)
# No whole number: alone, it is an epoch as an earlier version wrote it.
_DOCUMENTS = (b"null", b"true", b"[]", b"{}", b'""', b'"text"', b"-1", b"1.5", b"[{}]", b"\n", b"\x00", b"NaN")


def _flip_bit(data: bytes, random: Random) -> bytes:
    return flipped(data, random.randrange(len(data)), random.randrange(8))


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """`data` with one bit turned."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _set_byte(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([random.choice(_BYTES)]) + data[place + 1 :]


def _span(data: bytes, random: Random) -> tuple[int, int]:
    """A short one mostly; any in one of four."""
    start = random.randrange(len(data))
    longest = len(data) if random.random() < 0.25 else _LONGEST_SPAN
    return start, min(len(data), start + random.randint(1, longest))


def _delete_span(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _repeat_span(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    place = random.randrange(len(data) + 1)
    return data[:place] + data[start:end] + data[place:]


def _insert_noise(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randint(1, _LONGEST_SPAN)) + data[place:]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def _delete_line(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.pop(random.randrange(len(lines)))
    return b"".join(lines)


def _repeat_line(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(random.randint(0, len(lines)), random.choice(lines))
    return b"".join(lines)


def _place_of_value(text: str, place: int) -> int | None:
    """Where the JSON value that begins at `place` ends. None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return None


def _members(text: str) -> list[tuple[int, int, int]]:
    """Of each `"name": value`: where the name begins, where the value does, and where it ends."""
    names = ((match.start(), match.end()) for match in _NAME.finditer(text))
    return [(name, value, end) for name, value in names if (end := _place_of_value(text, value)) is not None]


def _swap_values(data: bytes, random: Random) -> bytes:
    text = data.decode("latin-1")  # a character a byte
    members = _members(text)
    if len(members) < 2:
        return _flip_bit(data, random)
    (_, first, first_end), (_, second, second_end) = sorted(random.sample(members, 2))
    if second < first_end:  # one holds the other
        return data[:first] + data[second:second_end] + data[first_end:]
    return b"".join(
        (data[:first], data[second:second_end], data[first_end:second], data[first:first_end], data[second_end:])
    )


def _put_value(data: bytes, random: Random) -> bytes:
    members = _members(data.decode("latin-1"))
    if not members:
        return _set_byte(data, random)
    _, start, end = random.choice(members)
    return data[:start] + random.choice(_VALUES) + data[end:]


def _repeat_name(data: bytes, random: Random) -> bytes:
    members = _members(data.decode("latin-1"))
    if not members:
        return _repeat_span(data, random)
    name, value, end = random.choice(members)
    content = random.choice((data[value:end], *_VALUES))
    place = random.choice((name, end))
    added = data[name:value] + content
    return data[:place] + (added + b"," if place == name else b"," + added) + data[place:]


def _drop_member(data: bytes, random: Random) -> bytes:
    members = _members(data.decode("latin-1"))
    if not members:
        return _delete_span(data, random)
    name, _, end = random.choice(members)
    rest = data[end:].lstrip()
    return data[:name] + (rest[1:] if rest[:1] == b"," else data[end:])


def _rename(data: bytes, random: Random) -> bytes:
    names = [match.span(1) for match in _NAME.finditer(data.decode("latin-1")) if match[1]]
    if not names:
        return _set_byte(data, random)
    start, end = random.choice(names)
    place = random.randrange(start, end)
    return data[:place] + bytes([random.choice(b"abcdefghijklmnopqrstuvwxyz_09")]) + data[place + 1 :]


def _put_number(data: bytes, random: Random) -> bytes:
    numbers = list(_DIGITS.finditer(data))
    if not numbers:
        return _insert_noise(data, random)
    match = random.choice(numbers)
    return data[: match.start()] + random.choice(_NUMBERS) + data[match.end() :]


def _put_text(data: bytes, random: Random) -> bytes:
    strings = list(_STRING.finditer(data))
    text = random.choice(_TEXTS)
    if not strings:
        place = random.randrange(len(data) + 1)
        return data[:place] + text + data[place:]
    match = random.choice(strings)
    place = random.randrange(match.start() + 1, match.end())
    return data[:place] + text + data[place:]


def _nest(data: bytes, random: Random) -> bytes:
    opened, closed = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = random.choice((200, 1000, _DEPTH))
    nest = opened * depth + (b"1" + closed * depth if random.random() < 0.5 else b"")
    members = _members(data.decode("latin-1"))
    if not members or random.random() < 0.25:
        return nest
    _, start, end = random.choice(members)
    return data[:start] + nest + data[end:]


def _mark_order(data: bytes, random: Random) -> bytes:
    return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) + data


def _to_utf16(data: bytes, random: Random) -> bytes:
    return data.decode("latin-1").encode(random.choice(("utf-16", "utf-32")))


def _empty(_: bytes, __: Random) -> bytes:
    return b""


def _blanks(data: bytes, random: Random) -> bytes:
    place = random.choice((0, len(data), random.randrange(len(data) + 1)))
    return data[:place] + random.choice((b" ", b"\n", b"\t", b"\x00")) * (1 << 20) + data[place:]


def _enlarge(data: bytes, random: Random) -> bytes:
    """A megabyte within a string, or anywhere: what takes the square of its length would not come to an end."""
    strings = list(_STRING.finditer(data))
    place = random.randrange(len(data) + 1)
    if strings and random.random() < 0.5:
        place = random.choice(strings).start() + 1
    part = random.choice((b"x", b"0", b" ", b"'", b'"', b"\\", b"/", b"{", b"x ", b"x=", b"x: ", b'"",', b"\x00"))
    return data[:place] + part * (_LARGE // len(part)) + data[place:]


def _twice(data: bytes, random: Random) -> bytes:
    return random.choice((data, data.rstrip(b"\n"))) + data


def _document(_: bytes, random: Random) -> bytes:
    return random.choice(_DOCUMENTS)


MUTATORS: dict[str, tuple[Mutator, int]] = {
    "bit": (_flip_bit, 20),
    "byte": (_set_byte, 12),
    "delete": (_delete_span, 8),
    "repeat": (_repeat_span, 8),
    "noise": (_insert_noise, 6),
    "truncate": (_truncate, 10),
    "drop-line": (_delete_line, 4),
    "repeat-line": (_repeat_line, 4),
    "swap-values": (_swap_values, 10),
    "value": (_put_value, 20),
    "name-twice": (_repeat_name, 10),
    "drop-name": (_drop_member, 8),
    "rename": (_rename, 10),
    "number": (_put_number, 14),
    "text": (_put_text, 12),
    "nest": (_nest, 4),
    "order-mark": (_mark_order, 1),
    "utf-16": (_to_utf16, 1),
    "empty": (_empty, 1),
    "blanks": (_blanks, 1),
    "large": (_enlarge, 2),
    "twice": (_twice, 3),
    "document": (_document, 3),
}
"""Each with how often it is taken."""
_WEIGHTS = [weight for _, weight in MUTATORS.values()]


def mutate(data: bytes, random: Random) -> tuple[str, bytes]:
    """Damages `data` in one way, or in two in one of ten. Returns the ways' names, and what came of it."""
    names = random.choices(list(MUTATORS), _WEIGHTS, k=2 if random.random() < 0.1 else 1)
    for name in names:
        data = MUTATORS[name][0](data, random) if data else data
    return "+".join(names), data


def name_flips(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every bit of every byte of every name in JSON text, turned, each with where it is."""
    for match in _NAME.finditer(data.decode("latin-1")):
        for place in range(*match.span(1)):
            for bit in range(8):
                yield f"{match[1]}, byte {place}, bit {bit}", flipped(data, place, bit)


def other_values(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every value that has a name, with each of the values that may be a surprise in its place."""
    for name, start, end in _members(data.decode("latin-1")):
        for value in _VALUES:
            yield f"{data[name:start].decode('latin-1')}{value[:12].decode()}", data[:start] + value + data[end:]
